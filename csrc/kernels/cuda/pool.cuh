// Layer norm of a sum where an exit follows, with the pooling of the rows.
#pragma once

#include "kernels/cuda/norm.cuh"

namespace consistentee {

constexpr int kPoolTokens = 16;  // of a text, that a block takes
constexpr int kCompared = 4;     // vectors that the comparison of two texts has

struct RowPooling {
  const int32_t* cu_seqlens;     // [B + 1]
  const int64_t* row_ids;        // [B], read for pairs alone
  const int32_t* first_lengths;  // [N], by row_ids: tokens of a row's first text; likewise
  float* partial;                // [B, splits, H], the sums over a block's tokens
  int32_t* tickets;              // [B], 0 before and after: how many blocks of a row have ended
  bool mean;                     // of a text's tokens; else the first of a row
  bool pair;                     // rows are two texts, whose means are compared; else one
};

// The tokens of a row; where it has one text alone, a second one would begin at its end.
struct RowTokens {
  int begin, second, end;
};

struct TokenRange {
  int begin, end;
};

static __device__ __forceinline__ RowTokens row_tokens(const RowPooling& pooling, int64_t row) {
  const int begin = pooling.cu_seqlens[row], end = pooling.cu_seqlens[row + 1];
  const int64_t row_id = pooling.pair ? pooling.row_ids[row] : -1;
  if (row_id < 0) return {begin, end, end};  // nobody reads how the texts of such a row compare
  const int length = pooling.first_lengths[row_id];
  return {begin, begin + (length < 0 ? 0 : length < end - begin ? length : end - begin), end};
}

static __device__ __forceinline__ int pool_blocks(int tokens) {
  return (tokens + kPoolTokens - 1) / kPoolTokens;
}

// What block number `split` of a row takes: the blocks of its second text come behind those of its
// first.
static __device__ __forceinline__ TokenRange block_tokens(const RowTokens& row, int split) {
  const int first_blocks = pool_blocks(row.second - row.begin);
  const bool in_first = split < first_blocks;
  const int text_end = in_first ? row.second : row.end;
  const int begin = in_first ? row.begin + split * kPoolTokens
                             : row.second + (split - first_blocks) * kPoolTokens;
  return {begin, begin + kPoolTokens < text_end ? begin + kPoolTokens : text_end};
}

// The rounded mean of a text's tokens, of one element, from the sums of its blocks.
template <typename scalar_t>
static __device__ __forceinline__ float text_mean(
    const volatile float* sums, int blocks, int size, int tokens) {
  float sum = 0.0f;
#pragma unroll 4
  for (int block = 0; block < blocks; ++block) sum += sums[block * size];
  scalar_t mean;
  store(&mean, sum / static_cast<float>(tokens));
  return to_float(mean);
}

// Grid (B, splits): a block takes kPoolTokens tokens of a text, a warp each at a time, and the block of
// a row that ends last writes pooled: [B, H], or of pairs (u, v, |u - v|, u * v) [B, 4H]. Sums are
// taken in the order of the tokens, whichever block that is. Pairs need one split more, as both texts
// may end with a block of few tokens. H floats of shared memory a warp.
template <typename scalar_t>
static __global__ void __launch_bounds__(kNormWarps* kWarp, kNormBlocks)
    add_norm_pool(AddNorm<scalar_t> norm, RowPooling pooling, scalar_t* __restrict__ pooled) {
  CONSISTENTEE_DYNAMIC_SHARED(shared);
  __shared__ bool ends_last;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, warps = blockDim.x / kWarp;
  const int size = static_cast<int>(norm.hidden_size), width = norm_width(norm);
  const int64_t row = blockIdx.x;
  const auto [begin, end] = block_tokens(row_tokens(pooling, row), blockIdx.y);
  if (begin >= end) return;
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

  const RowTokens texts = row_tokens(pooling, row);  // kept from above it would cost registers
  scalar_t* out = pooled + row * size * (pooling.pair ? kCompared : 1);
  if (!pooling.mean) {
    if (begin != texts.begin) return;
    const scalar_t* token = norm.hidden + static_cast<int64_t>(begin) * size;
    for (int h = threadIdx.x; h < size; h += blockDim.x) out[h] = token[h];
    return;
  }
  const int first_tokens = texts.second - texts.begin, second_tokens = texts.end - texts.second;
  const int first_blocks = pool_blocks(first_tokens), second_blocks = pool_blocks(second_tokens);
  if (threadIdx.x == 0) {
    __threadfence();  // the block's sums are seen before it counts as ended
    ends_last = atomicAdd(pooling.tickets + row, 1) == first_blocks + second_blocks - 1;
  }
  __syncthreads();
  if (!ends_last) return;
  __threadfence();
  for (int h = threadIdx.x; h < size; h += blockDim.x) {
    const float u = text_mean<scalar_t>(partial + h, first_blocks, size, first_tokens);
    store(out + h, u);
    if (!pooling.pair) continue;
    float v = u;  // of one text alone
    if (second_blocks > 0) {
      const float* second = partial + first_blocks * size + h;
      v = text_mean<scalar_t>(second, second_blocks, size, second_tokens);
    }
    store(out + size + h, v);
    store(out + 2 * size + h, fabsf(u - v));
    store(out + 3 * size + h, u * v);
  }
  if (threadIdx.x == 0) pooling.tickets[row] = 0;
}

}  // namespace consistentee
