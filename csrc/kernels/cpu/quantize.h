// Rows as integers of 8 bits for a product, and what becomes of the product: scale, bias, activation.
#pragma once

#include <cmath>

#include "kernels/approx.h"
#include "kernels/cpu/table.h"

namespace consistentee::CONSISTENTEE_SIMD {
namespace {

// Below it a row is zeros: `levels` divided by a smaller number might not be finite.
constexpr float kLeastOfARow = 1e-30f;

// The bits of magnitudes rise with them; those of infinity and NaN are above all numbers'.
inline uint32_t magnitude(float x) { return float_to_bits(x) & 0x7fffffffu; }

// x [size], whose largest magnitude is given, as integers; returns their scale.
template <typename scalar_t>
float quantize_row(
    const scalar_t* x, int64_t size, uint32_t largest, int64_t levels, uint8_t* out) {
  const float most = bits_to_float(largest), range = static_cast<float>(levels);
  const bool finite = largest < 0x7f800000u, zeros = most < kLeastOfARow;
  const float inverse = finite && !zeros ? range / most : 0.0f;
  const int32_t zero_point = static_cast<int32_t>(levels) + 1;
#pragma omp simd
  for (int64_t i = 0; i < size; ++i) {
    const float nearest = __builtin_rintf(to_float(x[i]) * inverse);
    out[i] = static_cast<uint8_t>(static_cast<int32_t>(nearest) + zero_point);
  }
  return !finite ? NAN : zeros ? 0.0f : most / range;
}

template <typename scalar_t>
void quantize_tokens(
    const scalar_t* x,
    int64_t size,
    int64_t levels,
    uint8_t* out,
    float* scales,
    int64_t begin,
    int64_t end) {
  for (int64_t token = begin; token < end; ++token) {
    const scalar_t* source = x + token * size;
    uint32_t largest = 0;
#pragma omp simd reduction(max : largest)
    for (int64_t i = 0; i < size; ++i) {
      const uint32_t bits = magnitude(to_float(source[i]));
      largest = bits > largest ? bits : largest;
    }
    scales[token] = quantize_row(source, size, largest, levels, out + token * size);
  }
}

inline float gelu_tanh(float x) {
  return 0.5f * x * (1.0f + tanh_approx(0.79788456080286536f * (x + 0.044715f * x * x * x)));
}

// Calls f with an activation as a function of a number.
template <typename F>
void with_activation(Activation activation, const F& f) {
  switch (activation) {
    case Activation::kNone: return f([](float x) { return x; });
    case Activation::kGelu: return f([](float x) { return gelu_approx(x); });
    case Activation::kGeluTanh: return f([](float x) { return gelu_tanh(x); });
    case Activation::kRelu: return f([](float x) { return x < 0.0f ? 0.0f : x; });
    case Activation::kSilu: return f([](float x) { return x / (1.0f + exp_approx(-x)); });
    case Activation::kTanh: return f([](float x) { return tanh_approx(x); });
  }
}

// out = f(scale x + bias), [size], which may be x; returns the largest magnitude.
template <typename scalar_t, typename out_t, typename F>
uint32_t finish_row(
    const scalar_t* x, float scale, const float* bias, int64_t size, const F& f, out_t* out) {
  uint32_t largest = 0;
#pragma omp simd reduction(max : largest)
  for (int64_t i = 0; i < size; ++i) {
    const float y = f(scale * to_float(x[i]) + bias[i]);
    const uint32_t bits = magnitude(y);
    largest = bits > largest ? bits : largest;
    store(out + i, y);
  }
  return largest;
}

template <typename scalar_t>
void finish_tokens(
    scalar_t* x,
    const float* scales,
    const float* bias,
    Activation activation,
    int64_t size,
    int64_t begin,
    int64_t end) {
  with_activation(activation, [&](const auto& f) {
    for (int64_t token = begin; token < end; ++token) {
      scalar_t* row = x + token * size;
      finish_row(row, scales[token], bias, size, f, row);
    }
  });
}

template <typename scalar_t>
void requantize_tokens(
    const scalar_t* x,
    const float* scales,
    const float* bias,
    Activation activation,
    int64_t size,
    int64_t levels,
    uint8_t* out,
    float* out_scales,
    int64_t begin,
    int64_t end,
    float* scratch) {
  with_activation(activation, [&](const auto& f) {
    for (int64_t token = begin; token < end; ++token) {
      const uint32_t largest = finish_row(x + token * size, scales[token], bias, size, f, scratch);
      out_scales[token] = quantize_row(scratch, size, largest, levels, out + token * size);
    }
  });
}

}  // namespace
}  // namespace consistentee::CONSISTENTEE_SIMD
