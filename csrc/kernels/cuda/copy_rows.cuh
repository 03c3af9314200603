// The copy of the surviving rows, whose places plan_survivors gave. It is a kernel of its own: blocks
// that wait for each other's counts would have to spin.
#pragma once

#include "kernels/copy.h"

namespace consistentee {

constexpr int kCopyThreads = 256;

// Grid (B, splits): gridDim.y blocks share the copy of a row, whose tokens lie side by side.
static __global__ void __launch_bounds__(kCopyThreads) copy_rows(
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
