// attend_head: softmax(scale * Q K^T + ...) V of one head of one row, keys in tiles, softmax online.
#pragma once

#include <algorithm>
#include <cmath>

#include "kernels/approx.h"
#include "kernels/cpu/attention_form.h"

namespace consistentee::CONSISTENTEE_SIMD {
namespace {

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
