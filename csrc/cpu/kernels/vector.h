// Vectors of floats as wide as the instruction set has them, and the small product built on them.
#pragma once

#include <cstdint>
#include <cstring>

namespace consistentee::CONSISTENTEE_SIMD {
namespace {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
constexpr int kBlockRows = 6,
              kBlockVectors = 4;  // 24 sums, 4 loads and a broadcast in 32 registers
#elif defined(__AVX__)
constexpr int kLanes = 8;
constexpr int kBlockRows = 6,
              kBlockVectors = 2;  // 12 sums, 2 loads and a broadcast in 16 registers
#else
constexpr int kLanes = 4;
constexpr int kBlockRows = 6, kBlockVectors = 2;
#endif

typedef float Vector __attribute__((vector_size(4 * kLanes)));

inline Vector load_vector(const float* source) {
  Vector value;
  memcpy(&value, source, sizeof(value));
  return value;
}

inline void store_vector(float* target, Vector value) { memcpy(target, &value, sizeof(value)); }

inline int64_t round_up(int64_t size) { return (size + kLanes - 1) / kLanes * kLanes; }

// c [Rows, Vectors * kLanes] += a [Rows, depth] b [depth, Vectors * kLanes], the sums in registers.
template <int Rows, int Vectors>
void multiply_block(
    int64_t depth,
    const float* a,
    int64_t a_stride,
    const float* b,
    int64_t b_stride,
    float* c,
    int64_t c_stride) {
  Vector sums[Rows][Vectors];
#pragma GCC unroll 8
  for (int i = 0; i < Rows; ++i) {
#pragma GCC unroll 8
    for (int j = 0; j < Vectors; ++j) sums[i][j] = load_vector(c + i * c_stride + j * kLanes);
  }
  for (int64_t k = 0; k < depth; ++k) {
    Vector right[Vectors];
#pragma GCC unroll 8
    for (int j = 0; j < Vectors; ++j) right[j] = load_vector(b + k * b_stride + j * kLanes);
#pragma GCC unroll 8
    for (int i = 0; i < Rows; ++i) {
      const float left = a[i * a_stride + k];
#pragma GCC unroll 8
      for (int j = 0; j < Vectors; ++j) sums[i][j] += left * right[j];
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < Rows; ++i) {
#pragma GCC unroll 8
    for (int j = 0; j < Vectors; ++j) store_vector(c + i * c_stride + j * kLanes, sums[i][j]);
  }
}

template <int Vectors>
void multiply_columns(
    int64_t rows,
    int64_t depth,
    const float* a,
    int64_t a_stride,
    const float* b,
    int64_t b_stride,
    float* c,
    int64_t c_stride) {
  for (; rows >= kBlockRows; rows -= kBlockRows) {
    multiply_block<kBlockRows, Vectors>(depth, a, a_stride, b, b_stride, c, c_stride);
    a += kBlockRows * a_stride;
    c += kBlockRows * c_stride;
  }
  for (; rows >= 2; rows -= 2) {
    multiply_block<2, Vectors>(depth, a, a_stride, b, b_stride, c, c_stride);
    a += 2 * a_stride;
    c += 2 * c_stride;
  }
  if (rows) multiply_block<1, Vectors>(depth, a, a_stride, b, b_stride, c, c_stride);
}

// c [rows, columns] += a [rows, depth] b [depth, columns]; `columns` is a multiple of kLanes.
inline void multiply(
    int64_t rows,
    int64_t columns,
    int64_t depth,
    const float* a,
    int64_t a_stride,
    const float* b,
    int64_t b_stride,
    float* c,
    int64_t c_stride) {
  constexpr int64_t kWidth = kBlockVectors * kLanes;
  for (; columns >= kWidth; columns -= kWidth, b += kWidth, c += kWidth) {
    multiply_columns<kBlockVectors>(rows, depth, a, a_stride, b, b_stride, c, c_stride);
  }
  for (; columns > 0; columns -= kLanes, b += kLanes, c += kLanes) {
    multiply_columns<1>(rows, depth, a, a_stride, b, b_stride, c, c_stride);
  }
}

}  // namespace
}  // namespace consistentee::CONSISTENTEE_SIMD
