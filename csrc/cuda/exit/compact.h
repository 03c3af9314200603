// What the CUDA ops share: a packed batch, where its surviving rows go, and their copy.
#pragma once

#include <algorithm>
#include <tuple>

#include "cuda/launch.h"
#include "kernels/cuda/copy_rows.cuh"
#include "kernels/cuda/plan.cuh"

namespace consistentee {

struct DeviceBatch {
  int64_t rows;    // B
  int64_t tokens;  // T
  int64_t hidden_size;
};

DeviceBatch check_device_batch(
    const Tensor& hidden, const Tensor& cu_seqlens, const Tensor& row_ids);

// Copies the tokens of the rows that `offsets` keeps to `out`, which has room for them.
void launch_copy(
    const Tensor& hidden,
    const Tensor& cu_seqlens,
    const Tensor& offsets,
    const Tensor& out,
    cudaStream_t stream);

}  // namespace consistentee
