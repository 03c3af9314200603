// What an AttentionForm does to queries, keys and scores.
#pragma once

#include <algorithm>
#include <cmath>

#include "kernels/cpu/attention_tiles.h"

namespace consistentee::CONSISTENTEE_SIMD {
namespace {

// A head of one token at a place of its row, normed and turned in place, [size].
inline void prepare(
    const AttentionForm& form,
    const float* norm,
    float eps,
    int64_t place,
    int64_t size,
    float* x) {
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
    const AttentionHead<scalar_t>& head,
    int64_t first,
    int64_t rows,
    int64_t width,
    float* target) {
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
  for (int64_t first = 0; first < head.queries;
       first += kQueryBlock, target += size * kQueryBlock) {
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
        reach, columns, size, {rows, size, 1}, query, kQueryBlock, scratch.of_queries, kQueryBlock);
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

}  // namespace
}  // namespace consistentee::CONSISTENTEE_SIMD
