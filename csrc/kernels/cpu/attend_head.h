// attend_head: softmax(scale * Q K^T + ...) V of one head of one row, keys in tiles, softmax online.
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
  const int64_t own = lanes * (head_size + width + 2) + kKeyTile * (2 * width + kQueryBlock) + width;
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

// A head of one token at a place of its row, normed and turned in place, [size].
inline void prepare(
    const AttentionForm& form, const float* norm, float eps, int64_t place, int64_t size, float* x) {
  if (norm) {
    float squares = 0.0f;
#pragma omp simd reduction(+ : squares)
    for (int64_t i = 0; i < size; ++i) squares += x[i] * x[i];
    const float scale = 1.0f / std::sqrt(squares / static_cast<float>(size) + eps);
#pragma omp simd
    for (int64_t i = 0; i < size; ++i) x[i] *= scale * norm[i];
  }
  const int64_t half = form.rotated / 2;
  const float* cos = form.cos + place * half;
  const float* sin = form.sin + place * half;
  float* second = x + half;
#pragma omp simd
  for (int64_t i = 0; i < half; ++i) {
    const float a = x[i], b = second[i];
    x[i] = a * cos[i] - b * sin[i];
    second[i] = b * cos[i] + a * sin[i];
  }
}

// As unpack, each key prepared; `first` is the place of the first.
template <typename scalar_t>
void unpack_keys(
    const AttentionHead<scalar_t>& head, int64_t first, int64_t rows, int64_t width, float* target) {
  const AttentionForm& form = head.form;
  const scalar_t* source = head.key + first * head.key_stride;
  unpack(source, head.key_stride, rows, head.head_size, width, target);
  if (!form.key_norm && !form.rotated) return;
  for (int64_t i = 0; i < rows; ++i) {
    prepare(form, form.key_norm, form.key_eps, first + i, head.head_size, target + i * width);
  }
}

// As unpack_queries, each query prepared in `row`.
template <typename scalar_t>
void unpack_prepared(const AttentionHead<scalar_t>& head, float* row, float* target) {
  const AttentionForm& form = head.form;
  const int64_t size = head.head_size;
  for (int64_t first = 0; first < head.queries; first += kQueryBlock, target += size * kQueryBlock) {
    const int64_t count = std::min(kQueryBlock, head.queries - first);
    if (count < kQueryBlock) std::fill(target, target + size * kQueryBlock, 0.0f);
    for (int64_t lane = 0; lane < count; ++lane) {
      const int64_t query = first + lane;
      unpack(head.query + query * head.query_stride, 0, 1, size, size, row);
      prepare(form, form.query_norm, form.query_eps, form.first_place + query, size, row);
      for (int64_t i = 0; i < size; ++i) target[i * kQueryBlock + lane] = form.scale * row[i];
    }
  }
}

// Adds the terms of buckets to the scores of a block of `count` queries from `place` on and a tile of
// keys from `first` on. The buckets that they reach lie side by side, as buckets rise with distance.
inline void add_relative(
    const AttentionForm& form,
    const AttentionScratch& scratch,
    const float* query,
    int64_t place,
    int64_t count,
    int64_t first,
    int64_t keys,
    int64_t size,
    int64_t width) {
  const int32_t* buckets = form.buckets + place - first;  // of the first query and key
  const int64_t least = buckets[1 - keys], reach = buckets[count - 1] - least + 1;
  if (form.relative_keys) {
    std::fill(scratch.of_queries, scratch.of_queries + reach * kQueryBlock, 0.0f);
    const float* rows = form.relative_keys + least * size;
    const int64_t columns = round_up(count);
    multiply(
        reach,
        columns,
        size,
        {rows, size, 1},
        query,
        kQueryBlock,
        scratch.of_queries,
        kQueryBlock);
    for (int64_t k = 0; k < keys; ++k) {
      float* score = scratch.scores + k * kQueryBlock;
      for (int64_t lane = 0; lane < count; ++lane) {
        score[lane] += scratch.of_queries[(buckets[lane - k] - least) * kQueryBlock + lane];
      }
    }
  }
  if (form.relative_queries) {
    // Whole vectors of buckets: from so early on that none lies behind the last.
    const int64_t columns = std::min(round_up(reach), form.num_buckets);
    const int64_t from = std::min(least, form.num_buckets - columns);
    std::fill(scratch.of_keys, scratch.of_keys + keys * kReach, 0.0f);
    multiply(
        keys,
        columns,
        size,
        {scratch.keys, width, 1},
        form.relative_queries + from,
        form.num_buckets,
        scratch.of_keys,
        kReach);
    for (int64_t k = 0; k < keys; ++k) {
      float* score = scratch.scores + k * kQueryBlock;
      const float* terms = scratch.of_keys + k * kReach;
      for (int64_t lane = 0; lane < count; ++lane) {
        score[lane] += form.scale * terms[buckets[lane - k] - from];
      }
    }
  }
}

// Adds the bias by distance to the scores of a block of queries from `place` on and a tile of keys,
// and takes those out of reach away.
inline void add_by_distance(
    const AttentionForm& form,
    float* scores,
    int64_t place,
    int64_t count,
    int64_t first,
    int64_t keys) {
  const int64_t distance = place - first;  // of the first query and key
  const bool all_seen = distance - (keys - 1) >= form.low && distance + count - 1 <= form.high;
  if (all_seen && !form.bias) return;
  for (int64_t k = 0; k < keys; ++k) {
    float* score = scores + k * kQueryBlock;
    if (form.bias) {
      const float* bias = form.bias + distance - k;
#pragma omp simd
      for (int64_t lane = 0; lane < count; ++lane) score[lane] += bias[lane];
    }
    if (all_seen) continue;
    const int64_t low = form.low - (distance - k), high = form.high - (distance - k);
#pragma omp simd
    for (int64_t lane = 0; lane < count; ++lane) {
      score[lane] = lane < low || lane > high ? kUnseen : score[lane];
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
  const AttentionForm& form = head.form;
  if (form.query_norm || form.rotated) {
    unpack_prepared(head, scratch.row, scratch.query);
  } else {
    unpack_queries(head.query, head.query_stride, queries, size, form.scale, scratch.query);
  }
  std::fill(scratch.context, scratch.context + queries * width, 0.0f);
  std::fill(scratch.highest, scratch.highest + lanes, -INFINITY);
  std::fill(scratch.total, scratch.total + lanes, 0.0f);
  for (int64_t first = 0; first < head.keys; first += kKeyTile) {
    const int64_t keys = std::min(kKeyTile, head.keys - first);
    // Queries that see none of the keys come before or behind those that see some.
    const int64_t first_seen = first + form.low - form.first_place;
    const int64_t last_seen = first + keys - 1 + form.high - form.first_place;
    if (first_seen >= queries || last_seen < 0) continue;
    const scalar_t* value = head.value + first * head.value_stride;
    unpack_keys(head, first, keys, width, scratch.keys);
    unpack(value, head.value_stride, keys, size, width, scratch.values);
    for (int64_t q = 0; q < queries; q += kQueryBlock) {
      const int64_t count = std::min(kQueryBlock, queries - q), columns = round_up(count);
      if (q + count <= first_seen || q > last_seen) continue;
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
      if (form.buckets) {
        add_relative(form, scratch, query, form.first_place + q, count, first, keys, size, width);
      }
      add_by_distance(form, scratch.scores, form.first_place + q, count, first, keys);
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
