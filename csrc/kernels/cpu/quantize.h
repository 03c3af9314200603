// Rows as integers of 8 bits for a product, and what becomes of the product: scale, bias, activation.
#pragma once

#include <algorithm>
#include <cmath>

#include "kernels/cpu/activation.h"

namespace consistentee::CONSISTENTEE_SIMD {
namespace {

// The least and the largest number of a row; `odd` is NaN where a number is not finite, else 0.
struct Range {
  float low, high, odd;
};

template <typename scalar_t>
Range range_of(const scalar_t* x, int64_t size) {
  float low = INFINITY, high = -INFINITY, odd = 0.0f;
#pragma omp simd reduction(min : low) reduction(max : high) reduction(+ : odd)
  for (int64_t i = 0; i < size; ++i) {
    const float value = to_float(x[i]);
    low = value < low ? value : low;
    high = value > high ? value : high;
    odd += value * 0.0f;
  }
  return {low, high, odd};
}

// x [size] as integers.
template <typename scalar_t>
TokenScale quantize_row(
    const scalar_t* x, int64_t size, Range range, int64_t levels, uint8_t* out) {
  constexpr float kLeast = 1e-30f;  // by less than it the numbers are not divided
  const float width = range.high - range.low, steps = static_cast<float>(2 * levels + 1);
  const float scale = width / steps, low = range.low;
  if (!(range.odd == 0.0f && width <= 3e38f)) {
    std::fill_n(out, size, uint8_t{0});
    return {NAN, NAN};
  }
  if (width < kLeast) {
    std::fill_n(out, size, uint8_t{0});
    return {0.0f, low};
  }
  const float inverse = steps / width;
#pragma omp simd
  for (int64_t i = 0; i < size; ++i) {
    const float nearest = __builtin_rintf((to_float(x[i]) - low) * inverse);
    out[i] = static_cast<uint8_t>(static_cast<int32_t>(nearest));
  }
  return {scale, low + scale * static_cast<float>(levels + 1)};
}

template <typename scalar_t>
void quantize_tokens(
    const scalar_t* x,
    int64_t size,
    int64_t levels,
    uint8_t* out,
    TokenScale* scales,
    int64_t begin,
    int64_t end) {
  for (int64_t token = begin; token < end; ++token) {
    const scalar_t* row = x + token * size;
    scales[token] = quantize_row(row, size, range_of(row, size), levels, out + token * size);
  }
}

// out = f(scale x + centre sums + bias), [size]; out may be x. Returns the range of out.
template <typename scalar_t, typename out_t, typename F>
Range finish_row(
    const scalar_t* x,
    TokenScale token,
    const OutputScale& output,
    int64_t size,
    const F& f,
    out_t* out) {
  const float scale = token.scale, centre = token.centre;
  const float* sums = output.sums;
  const float* bias = output.bias;
  float low = INFINITY, high = -INFINITY, odd = 0.0f;
#pragma omp simd reduction(min : low) reduction(max : high) reduction(+ : odd)
  for (int64_t i = 0; i < size; ++i) {
    const float y = f(scale * to_float(x[i]) + (centre * sums[i] + bias[i]));
    low = y < low ? y : low;
    high = y > high ? y : high;
    odd += y * 0.0f;
    store(out + i, y);
  }
  return {low, high, odd};
}

template <typename scalar_t>
void finish_tokens(
    scalar_t* x,
    const TokenScale* scales,
    const OutputScale& output,
    int64_t size,
    int64_t begin,
    int64_t end) {
  with_activation(output.activation, [&](const auto& f) {
    for (int64_t token = begin; token < end; ++token) {
      scalar_t* row = x + token * size;
      finish_row(row, scales[token], output, size, f, row);
    }
  });
}

template <typename scalar_t>
void prefetch_row(const scalar_t* x, int64_t size) {
  constexpr int64_t kLine = 64 / sizeof(scalar_t);
  for (int64_t i = 0; i < size; i += kLine) __builtin_prefetch(x + i, 0, 2);
}

template <typename scalar_t>
void requantize_tokens(
    const scalar_t* x,
    const TokenScale* scales,
    const OutputScale& output,
    int64_t size,
    int64_t levels,
    uint8_t* out,
    TokenScale* out_scales,
    int64_t begin,
    int64_t end,
    float* scratch) {
  with_activation(output.activation, [&](const auto& f) {
    for (int64_t token = begin; token < end; ++token) {
      if (token + 1 < end) prefetch_row(x + (token + 1) * size, size);
      const Range range = finish_row(x + token * size, scales[token], output, size, f, scratch);
      out_scales[token] = quantize_row(scratch, size, range, levels, out + token * size);
    }
  });
}

}  // namespace
}  // namespace consistentee::CONSISTENTEE_SIMD
