// mean_rows: the mean over the tokens of each row of a range. compare_rows: two means, side by side.
#pragma once

#include <algorithm>
#include <cmath>

#include "kernels/scalar.h"

namespace consistentee::CONSISTENTEE_SIMD {
namespace {

template <typename scalar_t>
void mean_rows(
    const scalar_t* hidden,
    const int32_t* cu_seqlens,
    int64_t hidden_size,
    int64_t begin,
    int64_t end,
    scalar_t* out,
    float* scratch) {
  for (int64_t row = begin; row < end; ++row) {
    std::fill(scratch, scratch + hidden_size, 0.0f);
    for (int64_t t = cu_seqlens[row]; t < cu_seqlens[row + 1]; ++t) {
      const scalar_t* token = hidden + t * hidden_size;
#pragma omp simd
      for (int64_t h = 0; h < hidden_size; ++h) scratch[h] += to_float(token[h]);
    }
    const float length = static_cast<float>(cu_seqlens[row + 1] - cu_seqlens[row]);
    scalar_t* mean = out + row * hidden_size;
#pragma omp simd
    for (int64_t h = 0; h < hidden_size; ++h) store(mean + h, scratch[h] / length);
  }
}

template <typename scalar_t>
void compare_rows(
    const scalar_t* texts,
    const int32_t* offsets,
    int64_t hidden_size,
    int64_t begin,
    int64_t end,
    scalar_t* out) {
  for (int64_t row = begin; row < end; ++row) {
    const bool alone = offsets[2 * row + 1] == offsets[2 * row + 2];
    const scalar_t* first = texts + 2 * row * hidden_size;
    const scalar_t* second = alone ? first : first + hidden_size;
    scalar_t* target = out + 4 * row * hidden_size;
#pragma omp simd
    for (int64_t h = 0; h < hidden_size; ++h) {
      const float u = to_float(first[h]), v = to_float(second[h]);
      store(target + h, u);
      store(target + hidden_size + h, v);
      store(target + 2 * hidden_size + h, std::abs(u - v));
      store(target + 3 * hidden_size + h, u * v);
    }
  }
}

}  // namespace
}  // namespace consistentee::CONSISTENTEE_SIMD
