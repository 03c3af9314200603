// A product of few rows, whose time is that of reading the weights.
//
// A lane of a vector sums every kLanes-th of the I terms, in rising order, and the lanes are added
// pairwise: what a row gives depends on neither the rows beside it nor the blocks they make up.
#pragma once

#include <algorithm>

#include "kernels/cpu/activation.h"
#include "kernels/cpu/vector.h"

namespace consistentee::CONSISTENTEE_SIMD {
namespace {

typedef uint32_t VectorBits __attribute__((vector_size(4 * kLanes)));
typedef int32_t VectorLanes __attribute__((vector_size(4 * kLanes)));
typedef uint16_t VectorHalves __attribute__((vector_size(2 * kLanes)));

constexpr int kOutputs = 4;  // of a block
// Of a block: with kOutputs sums each, and kOutputs weights, they fill the registers.
constexpr int kMostRows = kLanes == 16 ? 6 : 2;

inline Vector load_vector(const BFloat16* source) {
  VectorHalves halves;
  memcpy(&halves, source, sizeof(halves));
  const VectorBits bits = __builtin_convertvector(halves, VectorBits) << 16;
  Vector value;
  memcpy(&value, &bits, sizeof(value));
  return value;
}

inline Vector load_vector(const Half* source) {
  float values[kLanes];
  for (int i = 0; i < kLanes; ++i) values[i] = to_float(source[i]);
  return load_vector(values);
}

// The first `count` lanes; zeros in the others.
template <typename scalar_t>
Vector load_lanes(const scalar_t* source, int64_t count) {
  scalar_t values[kLanes] = {};
  memcpy(values, source, count * sizeof(scalar_t));
  return load_vector(values);
}

// Lane i added to lane i + half in each group of 2 * half lanes, of a and then of b.
inline Vector fold(Vector a, Vector b, int half) {
  VectorLanes low, high;
  for (int i = 0; i < kLanes; ++i) {
    low[i] = i / half * 2 * half + i % half;  // from kLanes on they are b's
    high[i] = low[i] + half;
  }
  return __builtin_shuffle(a, b, low) + __builtin_shuffle(a, b, high);
}

// The sums of the lanes of four vectors.
inline void fold_four(const Vector* sums, float* out) {
  constexpr int kHalf = kLanes / 2;
  Vector four = fold(fold(sums[0], sums[1], kHalf), fold(sums[2], sums[3], kHalf), kLanes / 4);
  if constexpr (kLanes == 16) four = fold(four, four, 2);
  if constexpr (kLanes >= 8) four = fold(four, four, 1);
  memcpy(out, &four, kOutputs * sizeof(float));
}

// out [Rows, kOutputs] = x [Rows, depth] w [Outputs, depth]^T; Ahead: the next block of weights is
// on its way from memory meanwhile.
template <typename scalar_t, int Rows, int Outputs, bool Ahead>
void multiply_row_block(
    const scalar_t* x, const scalar_t* w, int64_t depth, float* out, int64_t out_stride) {
  Vector sums[Rows][kOutputs] = {};
  const auto add = [&](int64_t k, const auto& load) {
    Vector right[Outputs];
#pragma GCC unroll 4
    for (int o = 0; o < Outputs; ++o) {
      right[o] = load(w + o * depth + k);
      if (Ahead) __builtin_prefetch(w + (o + Outputs) * depth + k);
    }
#pragma GCC unroll 6
    for (int i = 0; i < Rows; ++i) {
      const Vector left = load(x + i * depth + k);
#pragma GCC unroll 4
      for (int o = 0; o < Outputs; ++o) sums[i][o] += left * right[o];
    }
  };
  const int64_t whole = depth / kLanes * kLanes;
  for (int64_t k = 0; k < whole; k += kLanes) {
    add(k, [](const scalar_t* source) { return load_vector(source); });
  }
  if (whole < depth) {
    add(whole, [&](const scalar_t* source) { return load_lanes(source, depth - whole); });
  }
#pragma GCC unroll 6
  for (int i = 0; i < Rows; ++i) fold_four(sums[i], out + i * out_stride);
}

template <typename scalar_t, int Outputs>
void multiply_row_blocks(
    const scalar_t* x,
    int64_t rows,
    const scalar_t* w,
    int64_t depth,
    float* out,
    int64_t out_stride) {
  bool first = true;
  const auto some = [&](auto count) {
    constexpr int kRows = decltype(count)::value;
    for (; rows >= kRows; rows -= kRows, x += kRows * depth, out += kRows * out_stride) {
      if (first) {
        multiply_row_block<scalar_t, kRows, Outputs, true>(x, w, depth, out, out_stride);
      } else {
        multiply_row_block<scalar_t, kRows, Outputs, false>(x, w, depth, out, out_stride);
      }
      first = false;
    }
  };
  some(std::integral_constant<int, kMostRows>{});
  if constexpr (kMostRows > 4) some(std::integral_constant<int, 4>{});
  if constexpr (kMostRows > 2) some(std::integral_constant<int, 2>{});
  some(std::integral_constant<int, 1>{});
}

// out = f(sums + bias); sum i lies at sums[i * Stride].
template <int Stride, typename scalar_t>
void finish_sums(
    const float* sums, const scalar_t* bias, int64_t count, Activation activation, scalar_t* out) {
  with_activation(activation, [&](const auto& f) {
    if (bias) {
#pragma omp simd
      for (int64_t i = 0; i < count; ++i) store(out + i, f(sums[i * Stride] + to_float(bias[i])));
    } else {
#pragma omp simd
      for (int64_t i = 0; i < count; ++i) store(out + i, f(sums[i * Stride]));
    }
  });
}

template <typename scalar_t>
void multiply_few_rows(const RowsProduct<scalar_t>& product, int64_t begin, int64_t end) {
  const int64_t depth = product.inputs;
  float sums[kRowTile * kOutputTile];
  for (int64_t tile = begin; tile < end; ++tile) {
    const int64_t first = tile * kOutputTile;
    const int64_t outputs = std::min(kOutputTile, product.outputs - first);
    const scalar_t* bias = product.bias ? product.bias + first : nullptr;
    for (int64_t row = 0; row < product.rows; row += kRowTile) {
      const int64_t rows = std::min(kRowTile, product.rows - row);
      const scalar_t* x = product.x + row * depth;
      int64_t o = 0;
      // The last few outputs one by one: behind them there may be no memory to read.
      for (; o + kOutputs <= outputs; o += kOutputs) {
        const scalar_t* w = product.weight + (first + o) * depth;
        multiply_row_blocks<scalar_t, kOutputs>(x, rows, w, depth, sums + o, kOutputTile);
      }
      for (; o < outputs; ++o) {
        const scalar_t* w = product.weight + (first + o) * depth;
        float one[kRowTile * kOutputs];
        multiply_row_blocks<scalar_t, 1>(x, rows, w, depth, one, kOutputs);
        for (int64_t i = 0; i < rows; ++i) sums[i * kOutputTile + o] = one[i * kOutputs];
      }
      for (int64_t i = 0; i < rows; ++i) {
        finish_sums<1>(
            sums + i * kOutputTile,
            bias,
            outputs,
            product.activation,
            product.out + (row + i) * product.outputs + first);
      }
    }
  }
}

}  // namespace
}  // namespace consistentee::CONSISTENTEE_SIMD
