// Layer norm of a sum on the device.
#pragma once

#include "kernels/cuda/warp.cuh"
#include "kernels/cuda/wide.cuh"
#include "kernels/scalar.h"

namespace consistentee {

constexpr int kNormWarps = 8;   // of a block, where its tokens fit shared memory; else fewer
constexpr int kNormBlocks = 4;  // of a multiprocessor at once, which bounds a thread's registers
constexpr int kInFlight = 2;    // loads of a thread, of each operand, that wait for memory together

template <typename scalar_t>
struct AddNorm {
  scalar_t* hidden;          // [T, H], becomes the layer norm of hidden + residual
  const scalar_t* residual;  // [T, H]
  const scalar_t* weight;    // [H]
  const scalar_t* bias;      // [H]
  int64_t hidden_size;
  float eps;
};

// The accesses of a lane that wait for memory together, of two operands: number `first` and on.
template <int Width, typename scalar_t>
static __device__ __forceinline__ void load_pair(
    const scalar_t* one,
    const scalar_t* other,
    int first,
    int count,
    Wide<scalar_t, Width> (&a)[kInFlight],
    Wide<scalar_t, Width> (&b)[kInFlight]) {
#pragma unroll
  for (int k = 0; k < kInFlight; ++k) {
    const int i = first + k * kWarp;
    if (i >= count) continue;
    a[k] = load_wide<Width>(one + i * Width);
    b[k] = load_wide<Width>(other + i * Width);
  }
}

// One token, by one warp, in accesses of Width elements. `x` holds H floats of shared memory, which
// become the token's rounded values; a lane reads of them what it wrote.
template <int Width, typename scalar_t>
static __device__ __forceinline__ void normalize_by(
    const AddNorm<scalar_t>& norm, int64_t token, float* x, int lane) {
  const int size = static_cast<int>(norm.hidden_size), count = size / Width;
  scalar_t* hidden = norm.hidden + token * size;
  const scalar_t* residual = norm.residual + token * size;
  float sum = 0.0f;
  for (int first = lane; first < count; first += kInFlight * kWarp) {
    Wide<scalar_t, Width> a[kInFlight] = {}, b[kInFlight] = {};
    load_pair(hidden, residual, first, count, a, b);
#pragma unroll
    for (int k = 0; k < kInFlight; ++k) {
      const int i = first + k * kWarp;
      if (i >= count) continue;
      Wide<float, Width> total;
#pragma unroll
      for (int v = 0; v < Width; ++v) {
        total.values[v] = to_float(a[k].values[v]) + to_float(b[k].values[v]);
        sum += total.values[v];
      }
      store_wide<Width>(x + i * Width, total);
    }
  }
  const float mean = warp_sum(sum) / static_cast<float>(size);
  float squares = 0.0f;
#pragma unroll 4
  for (int i = lane; i < count; i += kWarp) {
    const auto total = load_wide<Width>(static_cast<const float*>(x + i * Width));
#pragma unroll
    for (int v = 0; v < Width; ++v) {
      squares += (total.values[v] - mean) * (total.values[v] - mean);
    }
  }
  const float variance = warp_sum(squares) / static_cast<float>(size);
  const float scale = 1.0f / sqrtf(variance + norm.eps);
  for (int first = lane; first < count; first += kInFlight * kWarp) {
    Wide<scalar_t, Width> w[kInFlight] = {}, b[kInFlight] = {};
    load_pair(norm.weight, norm.bias, first, count, w, b);
#pragma unroll
    for (int k = 0; k < kInFlight; ++k) {
      const int i = first + k * kWarp;
      if (i >= count) continue;
      auto total = load_wide<Width>(static_cast<const float*>(x + i * Width));
      Wide<scalar_t, Width> out;
#pragma unroll
      for (int v = 0; v < Width; ++v) {
        const float normal = (total.values[v] - mean) * scale;
        store(&out.values[v], normal * to_float(w[k].values[v]) + to_float(b[k].values[v]));
        total.values[v] = to_float(out.values[v]);
      }
      store_wide<Width>(x + i * Width, total);
      store_wide<Width>(hidden + i * Width, out);
    }
  }
}

// Elements of an access: of 16 bytes where all tokens and weights are aligned so.
template <typename scalar_t>
static __device__ __forceinline__ int norm_width(const AddNorm<scalar_t>& norm) {
  constexpr int kWidth = kWideBytes / sizeof(scalar_t);
  const bool aligned = is_wide(norm.hidden) && is_wide(norm.residual) && is_wide(norm.weight) &&
                       is_wide(norm.bias) && norm.hidden_size % kWidth == 0;
  return aligned ? kWidth : 1;
}

template <typename scalar_t>
static __device__ __forceinline__ void normalize_token(
    const AddNorm<scalar_t>& norm, int width, int64_t token, float* x, int lane) {
  if (width == 1) return normalize_by<1>(norm, token, x, lane);
  normalize_by<kWideBytes / sizeof(scalar_t)>(norm, token, x, lane);
}

// Grid (ceil(T / warps)): a warp a token. H floats of shared memory a warp.
template <typename scalar_t>
static __global__ void __launch_bounds__(kNormWarps* kWarp, kNormBlocks)
    add_norm_tokens(AddNorm<scalar_t> norm, int64_t tokens) {
  CONSISTENTEE_DYNAMIC_SHARED(shared);
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int64_t warps = blockDim.x / kWarp, token = blockIdx.x * warps + warp;
  float* x = shared + warp * norm.hidden_size;
  if (token < tokens) normalize_token(norm, norm_width(norm), token, x, lane);
}

}  // namespace consistentee
