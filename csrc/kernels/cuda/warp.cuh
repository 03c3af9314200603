// What the 32 threads of a warp do together. All of them must call each of these.
#pragma once

#include <cstdint>

#include "kernels/qualifiers.h"

namespace consistentee {

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;

// The sum over the warp, in an order that depends on nothing; every lane gets it.
static __device__ __forceinline__ float warp_sum(float value) {
#pragma unroll
  for (int step = kWarp / 2; step > 0; step /= 2) value += __shfl_xor_sync(kAllLanes, value, step);
  return value;
}

// weight . x over `size` elements.
static __device__ __forceinline__ float warp_dot(
    const float* __restrict__ weight, const float* x, int64_t size, int lane) {
  float sum = 0.0f;
#pragma unroll 8
  for (int i = lane; i < static_cast<int>(size); i += kWarp) sum += weight[i] * x[i];
  return warp_sum(sum);
}

// The index of the largest of `size` values that is not `excluded`, the first of equals; a NaN is
// larger than any number. -1 where there is none.
static __device__ __forceinline__ int warp_argmax(
    const float* values, int size, int excluded, int lane) {
  float best = 0.0f;
  int index = -1;
  const auto take = [&](float value, int i) {
    if (i < 0) return;
    const bool nan = value != value, best_nan = best != best;
    const bool greater = nan ? !best_nan : !best_nan && value > best;
    const bool equal = (nan && best_nan) || value == best;
    if (index < 0 || greater || (equal && i < index)) {
      best = value;
      index = i;
    }
  };
  for (int i = lane; i < size; i += kWarp) {
    if (i != excluded) take(values[i], i);
  }
#pragma unroll
  for (int step = kWarp / 2; step > 0; step /= 2) {
    const float other = __shfl_xor_sync(kAllLanes, best, step);
    const int other_index = __shfl_xor_sync(kAllLanes, index, step);
    take(other, other_index);
  }
  return index;
}

}  // namespace consistentee
