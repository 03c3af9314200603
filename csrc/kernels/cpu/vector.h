// Vectors of floats as wide as the instruction set has them, and the small product built on them.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

namespace consistentee::CONSISTENTEE_SIMD {
namespace {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
constexpr int kSums = 24, kMostVectors = 4;  // of 32 registers: 24 sums, 4 loads, a broadcast
#elif defined(__AVX__)
constexpr int kLanes = 8;
constexpr int kSums = 12, kMostVectors = 2;  // of 16 registers: 12 sums, 2 loads, a broadcast
#else
constexpr int kLanes = 4;
constexpr int kSums = 12, kMostVectors = 2;
#endif

typedef float Vector __attribute__((vector_size(4 * kLanes)));

inline Vector load_vector(const float* source) {
  Vector value;
  memcpy(&value, source, sizeof(value));
  return value;
}

inline void store_vector(float* target, Vector value) { memcpy(target, &value, sizeof(value)); }

inline int64_t round_up(int64_t size) { return (size + kLanes - 1) / kLanes * kLanes; }

// A matrix of floats: element (i, k) lies at data[i * rows + k * columns].
struct Strided {
  const float* data;
  int64_t rows, columns;
};

// c [Rows, Vectors * kLanes] += a [Rows, depth] b [depth, Vectors * kLanes], the sums in registers.
template <int Rows, int Vectors>
void multiply_block(
    int64_t depth, Strided a, const float* b, int64_t b_stride, float* c, int64_t c_stride) {
  Vector sums[Rows][Vectors];
#pragma GCC unroll 16
  for (int i = 0; i < Rows; ++i) {
#pragma GCC unroll 4
    for (int j = 0; j < Vectors; ++j) sums[i][j] = load_vector(c + i * c_stride + j * kLanes);
  }
  for (int64_t k = 0; k < depth; ++k) {
    Vector right[Vectors];
#pragma GCC unroll 4
    for (int j = 0; j < Vectors; ++j) right[j] = load_vector(b + k * b_stride + j * kLanes);
#pragma GCC unroll 16
    for (int i = 0; i < Rows; ++i) {
      const float left = a.data[i * a.rows + k * a.columns];
#pragma GCC unroll 4
      for (int j = 0; j < Vectors; ++j) sums[i][j] += left * right[j];
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < Rows; ++i) {
#pragma GCC unroll 4
    for (int j = 0; j < Vectors; ++j) store_vector(c + i * c_stride + j * kLanes, sums[i][j]);
  }
}

template <int Vectors>
void multiply_columns(
    int64_t rows,
    int64_t depth,
    Strided a,
    const float* b,
    int64_t b_stride,
    float* c,
    int64_t c_stride) {
  constexpr int kRows = kSums / Vectors;
  const auto advance = [&](int64_t count) {
    rows -= count;
    a.data += count * a.rows;
    c += count * c_stride;
  };
  for (; rows >= kRows; advance(kRows)) {
    multiply_block<kRows, Vectors>(depth, a, b, b_stride, c, c_stride);
  }
  for (; rows >= 2; advance(2)) multiply_block<2, Vectors>(depth, a, b, b_stride, c, c_stride);
  if (rows) multiply_block<1, Vectors>(depth, a, b, b_stride, c, c_stride);
}

// c [rows, columns] += a [rows, depth] b [depth, columns]; `columns` is a multiple of kLanes.
inline void multiply(
    int64_t rows,
    int64_t columns,
    int64_t depth,
    Strided a,
    const float* b,
    int64_t b_stride,
    float* c,
    int64_t c_stride) {
  const auto some = [&](auto vectors) {
    constexpr int kVectors = decltype(vectors)::value;
    for (; columns >= kVectors * kLanes; columns -= kVectors * kLanes) {
      multiply_columns<kVectors>(rows, depth, a, b, b_stride, c, c_stride);
      b += kVectors * kLanes;
      c += kVectors * kLanes;
    }
  };
  some(std::integral_constant<int, kMostVectors>{});
  if constexpr (kMostVectors > 2) some(std::integral_constant<int, 2>{});
  some(std::integral_constant<int, 1>{});
}

}  // namespace
}  // namespace consistentee::CONSISTENTEE_SIMD
