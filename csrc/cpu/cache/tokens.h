// Tokens of sequences whose keys and values lie in slots of a cache.
// consistentee_ext/generation/cache.py says what the cache holds.
#pragma once

#include <vector>

#include "cpu/batch.h"
#include "cpu/layer/layer.h"

namespace consistentee {

class Engine;

struct SlotCache {
  Tensor keys, values;  // [L, N * U, K * d]
  Tensor states;        // [N * U, H]
  Tensor filled;        // [E + 1, N] int64
  int64_t num_slots() const { return filled.size(1); }
  int64_t num_positions() const { return keys.size(1) / num_slots(); }
};

// The tokens that run some layers: the first `present` go on, the others get keys and values alone.
struct Tokens {
  std::vector<int64_t> slots;   // [present]
  std::vector<int64_t> rows;    // of the cache
  std::vector<int64_t> places;  // in the sequence
  int64_t present;
};

// Norms and turns queries and keys of a product [T, queries + keys + values] in place, and writes keys
// and values to a layer of the cache.
void place_tokens(
    const Tensor& product,
    const Attention& attention,
    const Tokens& tokens,
    const SlotCache& cache,
    int64_t layer);

// Copies a row of `source` to a row of `target`, both [_, H].
void copy_row(const Tensor& source, int64_t from, const Tensor& target, int64_t to);

// Rows of `source` by their numbers.
Tensor gather_rows(const Tensor& source, const std::vector<int64_t>& rows);

void check_cache(const Engine& engine, const SlotCache& cache);

// Blocks as decoders have them, and their tables, for sequences of at most `longest` tokens.
void check_blocks(const Engine& engine, int64_t longest);

}  // namespace consistentee
