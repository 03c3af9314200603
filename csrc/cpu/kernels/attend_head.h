// attend_head: softmax(Q K^T / sqrt(d)) V of one head of one row, keys in tiles, softmax online.
#pragma once

#include <algorithm>
#include <cmath>

#include "consistentee/approx.h"
#include "cpu/kernels.h"
#include "cpu/kernels/vector.h"

namespace consistentee::CONSISTENTEE_SIMD {
namespace {

// Both tiles of a head of size 64 and a block of scores stay in a first-level cache.
constexpr int64_t kKeyTile = 64;
constexpr int64_t kQueryBlock = 4 * kBlockRows;

// The part of one task's scratch memory that each thing takes, in floats.
struct AttentionScratch {
  float* query;    // [queries, width], scaled
  float* context;  // [queries, width], not yet divided by `total`
  float* highest;  // [queries], the largest score so far
  float* total;    // [queries], sum of exp(score - highest) so far
  float* keys;     // [head_size, kKeyTile], transposed
  float* values;   // [kKeyTile, width]
  float* scores;   // [kQueryBlock, kKeyTile]
};

inline int64_t attention_scratch(int64_t queries, int64_t head_size) {
  const int64_t width = round_up(head_size);
  return 2 * queries * (width + 1) + kKeyTile * (head_size + width) + kQueryBlock * kKeyTile;
}

inline AttentionScratch carve(float* memory, int64_t queries, int64_t head_size) {
  const int64_t width = round_up(head_size);
  AttentionScratch scratch;
  scratch.query = memory;
  scratch.context = scratch.query + queries * width;
  scratch.highest = scratch.context + queries * width;
  scratch.total = scratch.highest + queries;
  scratch.keys = scratch.total + queries;
  scratch.values = scratch.keys + kKeyTile * head_size;
  scratch.scores = scratch.values + kKeyTile * width;
  return scratch;
}

// target [rows, width] = scale * source [rows, size], zeros beyond `size`.
template <typename scalar_t>
void unpack(
    const scalar_t* source,
    int64_t stride,
    int64_t rows,
    int64_t size,
    int64_t width,
    float scale,
    float* target) {
  for (int64_t row = 0; row < rows; ++row, source += stride, target += width) {
#pragma omp simd
    for (int64_t i = 0; i < size; ++i) target[i] = scale * to_float(source[i]);
    for (int64_t i = size; i < width; ++i) target[i] = 0.0f;
  }
}

// target [size, tile] = source [rows, size] transposed, zeros in the columns beyond `rows`.
template <typename scalar_t>
void unpack_transposed(
    const scalar_t* source,
    int64_t stride,
    int64_t rows,
    int64_t size,
    int64_t tile,
    float* target) {
  for (int64_t row = 0; row < rows; ++row, source += stride) {
    for (int64_t i = 0; i < size; ++i) target[i * tile + row] = to_float(source[i]);
  }
  for (int64_t i = 0; i < size; ++i) {
    for (int64_t row = rows; row < tile; ++row) target[i * tile + row] = 0.0f;
  }
}

// Scores of one query to probabilities, relative to the highest score seen; earlier sums follow it.
inline void soften(
    float* scores, int64_t keys, float* context, int64_t width, float& highest, float& total) {
  float top = highest;
#pragma omp simd reduction(max : top)
  for (int64_t k = 0; k < keys; ++k) top = scores[k] > top ? scores[k] : top;
  float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
  for (int64_t k = 0; k < keys; ++k) {
    const float probability = exp_approx(scores[k] - top);
    scores[k] = probability;
    sum += probability;
  }
  if (top > highest && total > 0.0f) {
    const float shrink = std::exp(highest - top);
    total *= shrink;
#pragma omp simd
    for (int64_t i = 0; i < width; ++i) context[i] *= shrink;
  }
  highest = top;
  total += sum;
}

template <typename scalar_t>
void attend_head(const AttentionHead<scalar_t>& head, scalar_t* out, float* memory) {
  const int64_t size = head.head_size, width = round_up(size), queries = head.queries;
  const AttentionScratch scratch = carve(memory, queries, size);
  const float scale = 1.0f / std::sqrt(static_cast<float>(size));
  unpack(head.query, head.query_stride, queries, size, width, scale, scratch.query);
  std::fill(scratch.context, scratch.context + queries * width, 0.0f);
  std::fill(scratch.highest, scratch.highest + queries, -INFINITY);
  std::fill(scratch.total, scratch.total + queries, 0.0f);
  for (int64_t first = 0; first < head.keys; first += kKeyTile) {
    const int64_t keys = std::min(kKeyTile, head.keys - first), tile = round_up(keys);
    const scalar_t* key = head.key + first * head.key_stride;
    const scalar_t* value = head.value + first * head.value_stride;
    unpack_transposed(key, head.key_stride, keys, size, tile, scratch.keys);
    unpack(value, head.value_stride, keys, size, width, 1.0f, scratch.values);
    for (int64_t q = 0; q < queries; q += kQueryBlock) {
      const int64_t count = std::min(kQueryBlock, queries - q);
      float* context = scratch.context + q * width;
      std::fill(scratch.scores, scratch.scores + count * tile, 0.0f);
      multiply(
          count,
          tile,
          size,
          scratch.query + q * width,
          width,
          scratch.keys,
          tile,
          scratch.scores,
          tile);
      for (int64_t i = 0; i < count; ++i) {
        soften(
            scratch.scores + i * tile,
            keys,
            context + i * width,
            width,
            scratch.highest[q + i],
            scratch.total[q + i]);
      }
      multiply(count, width, keys, scratch.scores, tile, scratch.values, width, context, width);
    }
  }
  for (int64_t q = 0; q < queries; ++q, out += head.out_stride) {
    const float* context = scratch.context + q * width;
    const float share = 1.0f / scratch.total[q];
#pragma omp simd
    for (int64_t i = 0; i < size; ++i) store(out + i, context[i] * share);
  }
}

}  // namespace
}  // namespace consistentee::CONSISTENTEE_SIMD
