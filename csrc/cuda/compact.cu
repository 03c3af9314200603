// compact: the surviving rows of a packed batch, side by side.

#include <algorithm>
#include <tuple>

#include "consistentee/compact.cuh"
#include "cuda/launch.h"

namespace consistentee {
namespace {

std::tuple<Tensor, Tensor, Tensor> compact(
    const Tensor& hidden, const Tensor& cu_seqlens, const Tensor& row_ids, const Tensor& keep) {
  if (hidden.dim() != 2 || !hidden.is_contiguous()) {
    fail("hidden: expected a contiguous tensor of shape [T, H]");
  }
  if (cu_seqlens.dim() != 1 || cu_seqlens.size(0) < 1) {
    fail("cu_seqlens: expected a tensor of shape [B + 1]");
  }
  // The offsets lie on the device; reading them to check them would cost another wait.
  const int64_t rows = cu_seqlens.size(0) - 1;
  check_tensor(cu_seqlens, "cu_seqlens", ScalarType::Int, {rows + 1});
  check_tensor(row_ids, "row_ids", ScalarType::Long, {rows});
  check_tensor(keep, "keep", ScalarType::Bool, {rows});
  for (const Tensor* tensor : {&cu_seqlens, &row_ids, &keep}) {
    if (!tensor->is_cuda() || tensor->get_device_index() != hidden.get_device_index()) {
      fail("cu_seqlens, row_ids, keep: expected the device of hidden");
    }
  }

  const torch::stable::accelerator::DeviceGuard guard(hidden.get_device_index());
  const cudaStream_t stream = current_stream(hidden);
  const int64_t token_bytes = hidden.size(1) * static_cast<int64_t>(hidden.element_size());
  const CompactParams params{
      hidden.const_data_ptr(),
      data<int32_t>(cu_seqlens),
      data<int64_t>(row_ids),
      data<bool>(keep),
      rows,
      token_bytes};

  Tensor offsets = torch::stable::new_empty(cu_seqlens, {rows});
  Tensor new_cu_seqlens = torch::stable::new_empty(cu_seqlens, {rows + 1});
  Tensor new_row_ids = torch::stable::new_empty(row_ids, {rows});
  Tensor totals = torch::stable::new_empty(cu_seqlens, {2});
  const CompactPlan plan{
      mutable_data<int32_t>(offsets),
      mutable_data<int32_t>(new_cu_seqlens),
      mutable_data<int64_t>(new_row_ids),
      mutable_data<int32_t>(totals)};
  launch(compact_plan, dim3(1), kPlanThreads, stream, params, plan);

  // The sizes of the results are not known before; this is the op's one wait for the device.
  int32_t host_totals[2];
  STD_CUDA_CHECK(cudaMemcpyAsync(
      host_totals, plan.totals, sizeof(host_totals), cudaMemcpyDeviceToHost, stream));
  STD_CUDA_CHECK(cudaStreamSynchronize(stream));
  const int64_t new_rows = host_totals[0], tokens = host_totals[1];

  Tensor new_hidden = torch::stable::new_empty(hidden, {tokens, hidden.size(1)});
  if (new_hidden.numel() > 0) {
    // About four 16-byte accesses a thread on a row of mean length.
    const int64_t bytes_a_block = int64_t{4} * 16 * kCopyThreads;
    const int64_t splits =
        std::clamp<int64_t>(tokens * token_bytes / (new_rows * bytes_a_block), 1, 64);
    const dim3 grid(static_cast<unsigned>(rows), static_cast<unsigned>(splits));
    launch(
        compact_copy,
        grid,
        kCopyThreads,
        stream,
        params,
        static_cast<const int32_t*>(plan.offsets),
        new_hidden.mutable_data_ptr());
  }
  return {
      new_hidden,
      torch::stable::narrow(new_cu_seqlens, 0, 0, new_rows + 1),
      torch::stable::narrow(new_row_ids, 0, 0, new_rows)};
}

}  // namespace
}  // namespace consistentee

STABLE_TORCH_LIBRARY_IMPL(consistentee, CUDA, m) {
  m.impl("compact", TORCH_BOX(&consistentee::compact));
}
