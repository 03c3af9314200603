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

// Room for a plan that keeps every row.
struct PlannedRows {
  Tensor offsets, cu_seqlens, row_ids;

  PlannedRows(const Tensor& like_cu_seqlens, const Tensor& like_row_ids)
      : offsets(torch::stable::new_empty(like_cu_seqlens, {like_row_ids.numel()})),
        cu_seqlens(torch::stable::new_empty(like_cu_seqlens, {like_cu_seqlens.numel()})),
        row_ids(torch::stable::new_empty(like_row_ids, {like_row_ids.numel()})) {}

  SurvivorPlan pointers(const Tensor& totals) const {
    return {
        mutable_data<int32_t>(offsets),
        mutable_data<int32_t>(cu_seqlens),
        mutable_data<int64_t>(row_ids),
        mutable_data<int32_t>(totals)};
  }
};

// Copies the tokens of the rows that `offsets` keeps to `out`, which has room for them.
void launch_copy(
    const Tensor& hidden,
    const Tensor& cu_seqlens,
    const Tensor& offsets,
    const Tensor& out,
    cudaStream_t stream);

}  // namespace consistentee
