// Where the surviving rows of a packed batch go: a stable prefix sum over them, by one block.
#pragma once

#include <cstdint>

namespace consistentee {

// Of B rows B' stay, with T' tokens. The arrays keep room for all B rows, so that the next layer can be
// launched before B' is known: the entries beyond it are rows without tokens, with -1 as their id.
struct SurvivorPlan {
  int32_t* offsets;     // [B]: a row's first token in the new batch, -1 where the row leaves
  int32_t* cu_seqlens;  // [B + 1]: offsets of the B' rows, then T'
  int64_t* row_ids;     // [B]: those of the B' rows, then -1
  int32_t* totals;      // [2]: B', T'; may be pinned memory of the host
  bool removes;  // else all rows keep their places: offsets and cu_seqlens are not written, and
                 // row_ids becomes -1 for those that leave
};

// Bytes of shared memory that plan_survivors has of its own.
constexpr int64_t plan_memory(int threads) {
  return int64_t{2} * threads * static_cast<int64_t>(sizeof(int32_t));
}

// All Threads threads of a block call it. Rows come in tiles of one a thread; the sums before a tile
// are carried in registers, the same in every thread, so results do not depend on timing.
template <int Threads>
static __device__ void plan_survivors(
    const volatile bool* keep,
    const int32_t* __restrict__ cu_seqlens,
    const int64_t* __restrict__ row_ids,
    int64_t rows,
    const SurvivorPlan& plan) {
  __shared__ int32_t rows_before[Threads];
  __shared__ int32_t tokens_before[Threads];
  const int thread = static_cast<int>(threadIdx.x);
  int32_t kept = 0, tokens = 0;
  for (int64_t tile = 0; tile < rows; tile += Threads) {
    const int64_t row = tile + thread;
    const bool stays = row < rows && keep[row];
    const int32_t length = stays ? cu_seqlens[row + 1] - cu_seqlens[row] : 0;
    rows_before[thread] = stays ? 1 : 0;
    tokens_before[thread] = length;
    __syncthreads();
    // Inclusive scan: after the step of width w each thread holds the sum of its last 2w entries.
    // Threads beyond the last row add nothing, so that a few rows take a few steps.
    const int entries = static_cast<int>(rows - tile < Threads ? rows - tile : Threads);
    for (int width = 1; width < entries; width *= 2) {
      const int32_t more_rows = thread >= width ? rows_before[thread - width] : 0;
      const int32_t more_tokens = thread >= width ? tokens_before[thread - width] : 0;
      __syncthreads();
      rows_before[thread] += more_rows;
      tokens_before[thread] += more_tokens;
      __syncthreads();
    }
    const int32_t end = tokens + tokens_before[thread];
    if (stays) {
      const int32_t place = kept + rows_before[thread] - 1;
      plan.row_ids[place] = row_ids[row];
      plan.cu_seqlens[place + 1] = end;
    }
    if (row < rows) plan.offsets[row] = stays ? end - length : -1;
    kept += rows_before[entries - 1];
    tokens += tokens_before[entries - 1];
    __syncthreads();  // the next tile overwrites what is read here
  }
  for (int64_t row = kept + thread; row < rows; row += Threads) {
    plan.row_ids[row] = -1;
    plan.cu_seqlens[row + 1] = tokens;
  }
  if (thread == 0) {
    plan.cu_seqlens[0] = 0;
    plan.totals[0] = kept;
    plan.totals[1] = tokens;
  }
}

// The same where all rows keep their places.
template <int Threads>
static __device__ void mark_survivors(
    const volatile bool* keep,
    const int32_t* __restrict__ cu_seqlens,
    const int64_t* __restrict__ row_ids,
    int64_t rows,
    const SurvivorPlan& plan) {
  __shared__ int32_t kept, tokens;
  if (threadIdx.x == 0) kept = tokens = 0;
  __syncthreads();
  int32_t own_kept = 0, own_tokens = 0;
  for (int64_t row = threadIdx.x; row < rows; row += Threads) {
    const bool stays = keep[row];
    plan.row_ids[row] = stays ? row_ids[row] : -1;
    own_kept += stays ? 1 : 0;
    own_tokens += stays ? cu_seqlens[row + 1] - cu_seqlens[row] : 0;
  }
  if (own_kept > 0) {  // sums of integers: their order does not matter
    atomicAdd(&kept, own_kept);
    atomicAdd(&tokens, own_tokens);
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    plan.totals[0] = kept;
    plan.totals[1] = tokens;
  }
}

}  // namespace consistentee
