// Compaction of a packed batch on the device, in two passes: plan, then copy. Two kernels rather
// than one, because blocks that wait for each other's counts would have to spin.
#pragma once

#include "consistentee/copy.h"

namespace consistentee {

constexpr int kPlanThreads = 256;
constexpr int kCopyThreads = 256;

struct CompactParams {
  const void* hidden;         // [T, H]
  const int32_t* cu_seqlens;  // [B + 1]
  const int64_t* row_ids;     // [B]
  const bool* keep;           // [B]
  int64_t rows;               // B
  int64_t token_bytes;        // H times the size of an element
};

// What the first pass writes. B' of the B rows stay, with T' tokens.
struct CompactPlan {
  int32_t* offsets;     // [B]: a row's first token in the new batch, -1 where the row leaves
  int32_t* cu_seqlens;  // [B + 1], the first B' + 1 are written
  int64_t* row_ids;     // [B], the first B' are written
  int32_t* totals;      // [2]: B', T'
};

// One block. Rows come in tiles of one a thread; the sums before a tile are carried in registers,
// the same in every thread, so results do not depend on timing.
static __global__ void __launch_bounds__(kPlanThreads)
    compact_plan(const CompactParams params, const CompactPlan plan) {
  __shared__ int32_t rows_before[kPlanThreads];
  __shared__ int32_t tokens_before[kPlanThreads];
  const int thread = static_cast<int>(threadIdx.x);
  int32_t rows = 0, tokens = 0;
  for (int64_t tile = 0; tile < params.rows; tile += kPlanThreads) {
    const int64_t row = tile + thread;
    const bool stays = row < params.rows && params.keep[row];
    const int32_t length = stays ? params.cu_seqlens[row + 1] - params.cu_seqlens[row] : 0;
    rows_before[thread] = stays ? 1 : 0;
    tokens_before[thread] = length;
    __syncthreads();
    // Inclusive scan: after the step of width w each thread holds the sum of its last 2w entries.
    for (int width = 1; width < kPlanThreads; width *= 2) {
      const int32_t more_rows = thread >= width ? rows_before[thread - width] : 0;
      const int32_t more_tokens = thread >= width ? tokens_before[thread - width] : 0;
      __syncthreads();
      rows_before[thread] += more_rows;
      tokens_before[thread] += more_tokens;
      __syncthreads();
    }
    const int32_t end = tokens + tokens_before[thread];
    if (stays) {
      const int32_t place = rows + rows_before[thread] - 1;
      plan.row_ids[place] = params.row_ids[row];
      plan.cu_seqlens[place + 1] = end;
    }
    if (row < params.rows) plan.offsets[row] = stays ? end - length : -1;
    rows += rows_before[kPlanThreads - 1];
    tokens += tokens_before[kPlanThreads - 1];
    __syncthreads();  // the next tile overwrites what is read here
  }
  if (thread == 0) {
    plan.cu_seqlens[0] = 0;
    plan.totals[0] = rows;
    plan.totals[1] = tokens;
  }
}

// Grid (B, splits): gridDim.y blocks share the copy of a row, whose tokens lie side by side.
static __global__ void __launch_bounds__(kCopyThreads) compact_copy(
    const CompactParams params, const int32_t* __restrict__ offsets, void* __restrict__ out) {
  const int64_t row = blockIdx.x;
  const int64_t offset = offsets[row];
  if (offset < 0) return;
  const int64_t begin = params.cu_seqlens[row];
  copy_span(
      static_cast<unsigned char*>(out) + offset * params.token_bytes,
      static_cast<const unsigned char*>(params.hidden) + begin * params.token_bytes,
      (params.cu_seqlens[row + 1] - begin) * params.token_bytes,
      static_cast<int64_t>(blockIdx.y) * kCopyThreads + threadIdx.x,
      static_cast<int64_t>(gridDim.y) * kCopyThreads);
}

}  // namespace consistentee
