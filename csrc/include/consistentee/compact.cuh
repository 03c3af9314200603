// Compaction of a packed batch on the device, in two passes: plan, then copy. Two kernels rather
// than one, because blocks that wait for each other's counts would have to spin.
#pragma once

#include "consistentee/copy.h"
#include "consistentee/plan.cuh"

namespace consistentee {

constexpr int kPlanThreads = 256;
constexpr int kCopyThreads = 256;

// One block. Used where a mask is given; an exit step plans in its own kernel.
static __global__ void __launch_bounds__(kPlanThreads) compact_plan(
    const bool* keep,
    const int32_t* cu_seqlens,
    const int64_t* row_ids,
    int64_t rows,
    SurvivorPlan plan) {
  plan_survivors<kPlanThreads>(keep, cu_seqlens, row_ids, rows, plan);
}

// Grid (B, splits): gridDim.y blocks share the copy of a row, whose tokens lie side by side.
static __global__ void __launch_bounds__(kCopyThreads) compact_copy(
    const void* __restrict__ hidden,
    const int32_t* __restrict__ cu_seqlens,
    const int32_t* __restrict__ offsets,
    int64_t token_bytes,
    void* __restrict__ out) {
  const int64_t row = blockIdx.x;
  const int64_t offset = offsets[row];
  if (offset < 0) return;
  const int64_t begin = cu_seqlens[row];
  copy_span(
      static_cast<unsigned char*>(out) + offset * token_bytes,
      static_cast<const unsigned char*>(hidden) + begin * token_bytes,
      (cu_seqlens[row + 1] - begin) * token_bytes,
      static_cast<int64_t>(blockIdx.y) * kCopyThreads + threadIdx.x,
      static_cast<int64_t>(gridDim.y) * kCopyThreads);
}

}  // namespace consistentee
