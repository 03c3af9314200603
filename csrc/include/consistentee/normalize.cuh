// Layer norm of a sum on the device; where an exit follows, the rows' pooling as well.
#pragma once

#include "consistentee/scalar.h"
#include "consistentee/warp.cuh"

namespace consistentee {

constexpr int kNormWarps = 8;    // of a block, where its tokens fit shared memory; else fewer
constexpr int kPoolTokens = 32;  // of a row, that a block takes

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
  int32_t* finished;          // [B], 0 before and after: how many blocks of a row have ended
  bool mean;                  // of the row's tokens; else its first
};

// One token, by one warp; `x` holds H floats of shared memory.
template <typename scalar_t>
static __device__ __forceinline__ void normalize_token(
    const AddNorm<scalar_t>& norm, int64_t token, float* x, int lane) {
  const int64_t size = norm.hidden_size;
  scalar_t* hidden = norm.hidden + token * size;
  const scalar_t* residual = norm.residual + token * size;
  float sum = 0.0f;
  for (int64_t h = lane; h < size; h += kWarp) {
    x[h] = to_float(hidden[h]) + to_float(residual[h]);
    sum += x[h];
  }
  const float mean = warp_sum(sum) / static_cast<float>(size);
  float squares = 0.0f;
  for (int64_t h = lane; h < size; h += kWarp) squares += (x[h] - mean) * (x[h] - mean);
  const float variance = warp_sum(squares) / static_cast<float>(size);
  const float scale = 1.0f / sqrtf(variance + norm.eps);
  for (int64_t h = lane; h < size; h += kWarp) {
    store(hidden + h, (x[h] - mean) * scale * to_float(norm.weight[h]) + to_float(norm.bias[h]));
  }
}

// Grid (ceil(T / warps)): a warp a token. H floats of shared memory a warp.
template <typename scalar_t>
static __global__ void __launch_bounds__(kNormWarps* kWarp)
    add_norm_tokens(AddNorm<scalar_t> norm, int64_t tokens) {
  CONSISTENTEE_DYNAMIC_SHARED(shared);
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int64_t warps = blockDim.x / kWarp, token = blockIdx.x * warps + warp;
  if (token < tokens) normalize_token(norm, token, shared + warp * norm.hidden_size, lane);
}

// Grid (B, splits): a block takes kPoolTokens tokens of a row, and the block of a row that ends last
// writes pooled [B, H]. Sums are taken in the order of the tokens, whichever block that is.
template <typename scalar_t>
static __global__ void __launch_bounds__(kNormWarps* kWarp)
    add_norm_pool(AddNorm<scalar_t> norm, RowPooling pooling, scalar_t* __restrict__ pooled) {
  CONSISTENTEE_DYNAMIC_SHARED(shared);
  __shared__ bool ends_last;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, warps = blockDim.x / kWarp;
  const int64_t row = blockIdx.x, size = norm.hidden_size;
  const int64_t row_begin = pooling.cu_seqlens[row], row_end = pooling.cu_seqlens[row + 1];
  const int64_t begin = row_begin + static_cast<int64_t>(blockIdx.y) * kPoolTokens;
  if (begin >= row_end) return;
  const int64_t end = begin + kPoolTokens < row_end ? begin + kPoolTokens : row_end;
  for (int64_t token = begin + warp; token < end; token += warps) {
    normalize_token(norm, token, shared + warp * size, lane);
  }
  __syncthreads();  // the block's tokens are written

  scalar_t* out = pooled + row * size;
  if (!pooling.mean) {
    if (begin != row_begin) return;
    for (int64_t h = threadIdx.x; h < size; h += blockDim.x) out[h] = norm.hidden[begin * size + h];
    return;
  }
  const int blocks = static_cast<int>((row_end - row_begin + kPoolTokens - 1) / kPoolTokens);
  float* partial = pooling.partial + row * gridDim.y * size;
  for (int64_t h = threadIdx.x; h < size; h += blockDim.x) {
    float sum = 0.0f;
    for (int64_t token = begin; token < end; ++token)
      sum += to_float(norm.hidden[token * size + h]);
    partial[blockIdx.y * size + h] = sum;
  }
  __threadfence();  // the sums are seen before the block counts as ended
  __syncthreads();
  if (threadIdx.x == 0) ends_last = atomicAdd(pooling.finished + row, 1) == blocks - 1;
  __syncthreads();
  if (!ends_last) return;
  __threadfence();
  const float length = static_cast<float>(row_end - row_begin);
  const volatile float* sums = partial;
  for (int64_t h = threadIdx.x; h < size; h += blockDim.x) {
    float sum = 0.0f;
    for (int block = 0; block < blocks; ++block) sum += sums[block * size + h];
    store(out + h, sum / length);
  }
  if (threadIdx.x == 0) pooling.finished[row] = 0;
}

}  // namespace consistentee
