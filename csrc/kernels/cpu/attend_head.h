// attend_head: softmax(Q K^T / sqrt(d)) V of one head of one row, keys in tiles, softmax online.
#pragma once

#include <algorithm>
#include <cmath>

#include "kernels/approx.h"
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
};

inline int64_t query_lanes(int64_t queries) {
  return (queries + kQueryBlock - 1) / kQueryBlock * kQueryBlock;
}

inline int64_t attention_scratch(int64_t queries, int64_t head_size) {
  const int64_t width = round_up(head_size), lanes = query_lanes(queries);
  return lanes * (head_size + width + 2) + kKeyTile * (2 * width + kQueryBlock);
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

// Turns the scores of kLanes queries into probabilities relative to the highest score seen, and
// says by how much what was summed before must shrink.
inline void soften(float* scores, int64_t keys, float* highest, float* total, float* shrink) {
  float top[kLanes], sum[kLanes];
#pragma omp simd
  for (int i = 0; i < kLanes; ++i) {
    top[i] = highest[i];
    sum[i] = 0.0f;
  }
  for (int64_t k = 0; k < keys; ++k) {
    const float* score = scores + k * kQueryBlock;
#pragma omp simd
    for (int i = 0; i < kLanes; ++i) top[i] = score[i] > top[i] ? score[i] : top[i];
  }
  for (int64_t k = 0; k < keys; ++k) {
    float* score = scores + k * kQueryBlock;
#pragma omp simd
    for (int i = 0; i < kLanes; ++i) {
      score[i] = exp_approx(score[i] - top[i]);
      sum[i] += score[i];
    }
  }
#pragma omp simd
  for (int i = 0; i < kLanes; ++i) {
    shrink[i] = exp_approx(highest[i] - top[i]);
    total[i] = total[i] * shrink[i] + sum[i];
    highest[i] = top[i];
  }
}

template <typename scalar_t>
void attend_head(const AttentionHead<scalar_t>& head, scalar_t* out, float* memory) {
  const int64_t size = head.head_size, width = round_up(size), queries = head.queries;
  const int64_t lanes = query_lanes(queries);
  const AttentionScratch scratch = carve(memory, queries, size);
  const float scale = 1.0f / std::sqrt(static_cast<float>(size));
  unpack_queries(head.query, head.query_stride, queries, size, scale, scratch.query);
  std::fill(scratch.context, scratch.context + queries * width, 0.0f);
  std::fill(scratch.highest, scratch.highest + lanes, -INFINITY);
  std::fill(scratch.total, scratch.total + lanes, 0.0f);
  for (int64_t first = 0; first < head.keys; first += kKeyTile) {
    const int64_t keys = std::min(kKeyTile, head.keys - first);
    const scalar_t* key = head.key + first * head.key_stride;
    const scalar_t* value = head.value + first * head.value_stride;
    unpack(key, head.key_stride, keys, size, width, scratch.keys);
    unpack(value, head.value_stride, keys, size, width, scratch.values);
    for (int64_t q = 0; q < queries; q += kQueryBlock) {
      const int64_t count = std::min(kQueryBlock, queries - q), columns = round_up(count);
      const float* query = scratch.query + q * size;
      float* context = scratch.context + q * width;
      float shrink[kQueryBlock];
      std::fill(scratch.scores, scratch.scores + keys * kQueryBlock, 0.0f);
      multiply(
          keys,
          columns,
          size,
          {scratch.keys, width, 1},
          query,
          kQueryBlock,
          scratch.scores,
          kQueryBlock);
      for (int64_t i = 0; i < columns; i += kLanes) {
        soften(
            scratch.scores + i, keys, scratch.highest + q + i, scratch.total + q + i, shrink + i);
      }
      if (first > 0) {
        for (int64_t i = 0; i < count; ++i) {
#pragma omp simd
          for (int64_t h = 0; h < width; ++h) context[i * width + h] *= shrink[i];
        }
      }
      multiply(
          count,
          width,
          keys,
          {scratch.scores, 1, kQueryBlock},
          scratch.values,
          width,
          context,
          width);
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
