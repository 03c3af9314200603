// The scratch memory of attend_head, and how queries, keys and values are laid out in it.
#pragma once

#include <algorithm>
#include <cmath>

#include "kernels/cpu/table.h"
#include "kernels/cpu/vector.h"

namespace consistentee::CONSISTENTEE_SIMD {
namespace {

// Keys and values of a tile, of head size 64, and its scores stay in a first-level cache.
constexpr int64_t kKeyTile = 64;
constexpr int64_t kQueryBlock = 2 * kLanes;

// The parts of a task's scratch memory. Queries and scores are transposed, so that a lane of a
// vector is a query and the softmax needs no sum across lanes.
struct AttentionScratch {
  float* query;    // [queries / kQueryBlock, head_size, kQueryBlock], scaled
  float* context;  // [queries, width], not yet divided by `total`
  float* highest;  // [queries], the largest score so far
  float* total;    // [queries], the sum of exp(score - highest) so far
  float* keys;     // [kKeyTile, width]
  float* values;   // [kKeyTile, width]
  float* scores;   // [kKeyTile, kQueryBlock]
  float* row;      // [width]
  // With buckets, those that a block of queries and a tile of keys reach:
  float* of_queries;  // [kReach, kQueryBlock]
  float* of_keys;     // [kKeyTile, kReach]
};

// The score of a key out of reach: its probability is 0 beside any other, and a tile that has no
// other for a query is undone by the next one that has.
constexpr float kUnseen = -1e30f;
// Distances between a block of queries and a tile of keys, whole vectors of them.
constexpr int64_t kReach = (kKeyTile + kQueryBlock + kLanes - 1) / kLanes * kLanes;

inline int64_t query_lanes(int64_t queries) {
  return (queries + kQueryBlock - 1) / kQueryBlock * kQueryBlock;
}

inline int64_t attention_scratch(int64_t queries, int64_t head_size, bool relative) {
  const int64_t width = round_up(head_size), lanes = query_lanes(queries);
  const int64_t own =
      lanes * (head_size + width + 2) + kKeyTile * (2 * width + kQueryBlock) + width;
  return own + (relative ? kReach * (kQueryBlock + kKeyTile) : 0);
}

inline AttentionScratch carve(float* memory, int64_t queries, int64_t head_size) {
  const int64_t width = round_up(head_size), lanes = query_lanes(queries);
  AttentionScratch scratch;
  scratch.query = memory;
  scratch.context = scratch.query + lanes * head_size;
  scratch.highest = scratch.context + lanes * width;
  scratch.total = scratch.highest + lanes;
  scratch.keys = scratch.total + lanes;
  scratch.values = scratch.keys + kKeyTile * width;
  scratch.scores = scratch.values + kKeyTile * width;
  scratch.row = scratch.scores + kKeyTile * kQueryBlock;
  scratch.of_queries = scratch.row + width;
  scratch.of_keys = scratch.of_queries + kReach * kQueryBlock;
  return scratch;
}

// target [rows, width] = source [rows, size] as floats, zeros beyond `size`.
template <typename scalar_t>
void unpack(
    const scalar_t* source,
    int64_t stride,
    int64_t rows,
    int64_t size,
    int64_t width,
    float* target) {
  for (int64_t row = 0; row < rows; ++row, source += stride, target += width) {
#pragma omp simd
    for (int64_t i = 0; i < size; ++i) target[i] = to_float(source[i]);
    for (int64_t i = size; i < width; ++i) target[i] = 0.0f;
  }
}

// target [blocks, size, kQueryBlock] = scale * source [rows, size], zeros beyond `rows`.
template <typename scalar_t>
void unpack_queries(
    const scalar_t* source,
    int64_t stride,
    int64_t rows,
    int64_t size,
    float scale,
    float* target) {
  for (int64_t first = 0; first < rows; first += kQueryBlock, target += size * kQueryBlock) {
    const int64_t count = std::min(kQueryBlock, rows - first);
    if (count < kQueryBlock) std::fill(target, target + size * kQueryBlock, 0.0f);
    for (int64_t lane = 0; lane < count; ++lane, source += stride) {
      for (int64_t i = 0; i < size; ++i)
        target[i * kQueryBlock + lane] = scale * to_float(source[i]);
    }
  }
}

}  // namespace
}  // namespace consistentee::CONSISTENTEE_SIMD
