// Layer norm of a sum on the device; where an exit follows, the rows' pooling as well.
#pragma once

#include "kernels/cuda/warp.cuh"
#include "kernels/cuda/wide.cuh"
#include "kernels/scalar.h"

namespace consistentee {

constexpr int kNormWarps = 8;    // of a block, where its tokens fit shared memory; else fewer
constexpr int kPoolTokens = 16;  // of a row, that a block takes
constexpr int kNormBlocks = 4;   // of a multiprocessor at once, which bounds a thread's registers
constexpr int kInFlight = 2;  // loads of a thread, of each operand, that wait for memory together

template <typename scalar_t>
struct AddNorm {
  scalar_t* hidden;          // [T, H], becomes the layer norm of hidden + residual
  const scalar_t* residual;  // [T, H]
  const scalar_t* weight;    // [H]
  const scalar_t* bias;      // [H]
  int64_t hidden_size;
  float eps;
};

struct RowPooling {
  const int32_t* cu_seqlens;  // [B + 1]
  float* partial;             // [B, splits, H], the sums over a block's tokens
  int32_t* tickets;           // [B], 0 before and after: how many blocks of a row have ended
  bool mean;                  // of the row's tokens; else its first
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

// Grid (B, splits): a block takes kPoolTokens tokens of a row, a warp each at a time, and the block of
// a row that ends last writes pooled [B, H]. Sums are taken in the order of the tokens, whichever
// block that is. H floats of shared memory a warp.
template <typename scalar_t>
static __global__ void __launch_bounds__(kNormWarps* kWarp, kNormBlocks)
    add_norm_pool(AddNorm<scalar_t> norm, RowPooling pooling, scalar_t* __restrict__ pooled) {
  CONSISTENTEE_DYNAMIC_SHARED(shared);
  __shared__ bool ends_last;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, warps = blockDim.x / kWarp;
  const int size = static_cast<int>(norm.hidden_size), width = norm_width(norm);
  const int64_t row = blockIdx.x;
  const int row_begin = pooling.cu_seqlens[row], row_end = pooling.cu_seqlens[row + 1];
  const int begin = row_begin + static_cast<int>(blockIdx.y) * kPoolTokens;
  if (begin >= row_end) return;
  const int end = begin + kPoolTokens < row_end ? begin + kPoolTokens : row_end;
  const int summed = pooling.mean ? size : 0;
  float* partial = pooling.partial + row * gridDim.y * size;
  float* sums = partial + blockIdx.y * size;  // each element is one thread's
#pragma unroll 1
  for (int first = begin; first < end; first += warps) {
    const int token = first + warp;
    if (token < end) normalize_token(norm, width, token, shared + warp * size, lane);
    __syncthreads();  // the warps' tokens are written
    const int present = end - first < warps ? end - first : warps;
    for (int h = threadIdx.x; h < summed; h += blockDim.x) {
      float sum = first == begin ? 0.0f : sums[h];
      for (int w = 0; w < present; ++w) sum += shared[w * size + h];
      sums[h] = sum;
    }
    __syncthreads();  // the sums are written; the next tokens take their places
  }

  scalar_t* out = pooled + row * size;
  if (!pooling.mean) {
    if (begin != row_begin) return;
    const scalar_t* token = norm.hidden + static_cast<int64_t>(begin) * size;
    for (int h = threadIdx.x; h < size; h += blockDim.x) out[h] = token[h];
    return;
  }
  const int blocks = (row_end - row_begin + kPoolTokens - 1) / kPoolTokens;
  if (threadIdx.x == 0) {
    __threadfence();  // the block's sums are seen before it counts as ended
    ends_last = atomicAdd(pooling.tickets + row, 1) == blocks - 1;
  }
  __syncthreads();
  if (!ends_last) return;
  __threadfence();
  const float length = static_cast<float>(row_end - row_begin);
  const volatile float* all = partial;
  for (int h = threadIdx.x; h < size; h += blockDim.x) {
    float sum = 0.0f;
#pragma unroll 4
    for (int block = 0; block < blocks; ++block) sum += all[block * size + h];
    store(out + h, sum / length);
  }
  if (threadIdx.x == 0) pooling.tickets[row] = 0;
}

}  // namespace consistentee
