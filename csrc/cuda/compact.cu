// compact: the surviving rows of a packed batch, side by side.

#include "cuda/compact.h"

namespace consistentee {

void launch_copy(
    const Tensor& hidden,
    const Tensor& cu_seqlens,
    const Tensor& offsets,
    const Tensor& out,
    cudaStream_t stream) {
  const int64_t rows = offsets.numel(), tokens = hidden.size(0);
  if (rows == 0 || hidden.numel() == 0) return;
  const int64_t token_bytes = hidden.size(1) * static_cast<int64_t>(hidden.element_size());
  // About four 16-byte accesses a thread on a row of mean length, were all rows to stay: how many do
  // is not known here. A block of a row that leaves ends at once.
  const int64_t bytes_a_block = int64_t{4} * 16 * kCopyThreads;
  const int64_t splits = std::clamp<int64_t>(tokens * token_bytes / (rows * bytes_a_block), 1, 64);
  const dim3 grid(static_cast<unsigned>(rows), static_cast<unsigned>(splits));
  launch(
      compact_copy,
      grid,
      kCopyThreads,
      0,
      stream,
      hidden.const_data_ptr(),
      data<int32_t>(cu_seqlens),
      data<int32_t>(offsets),
      token_bytes,
      out.mutable_data_ptr());
}

DeviceBatch check_device_batch(
    const Tensor& hidden, const Tensor& cu_seqlens, const Tensor& row_ids) {
  check_hidden(hidden);
  // The offsets lie on the device; reading them to check them would cost a wait.
  const int64_t rows = count_rows(cu_seqlens, "cu_seqlens");
  check_tensor(cu_seqlens, "cu_seqlens", ScalarType::Int, {rows + 1});
  check_tensor(row_ids, "row_ids", ScalarType::Long, {rows});
  check_device(hidden, {&cu_seqlens, &row_ids}, "cu_seqlens, row_ids");
  return {rows, hidden.size(0), hidden.size(1)};
}

namespace {

std::tuple<Tensor, Tensor, Tensor> compact(
    const Tensor& hidden, const Tensor& cu_seqlens, const Tensor& row_ids, const Tensor& keep) {
  const DeviceBatch batch = check_device_batch(hidden, cu_seqlens, row_ids);
  check_tensor(keep, "keep", ScalarType::Bool, {batch.rows});
  check_device(hidden, {&keep}, "keep");
  const torch::stable::accelerator::DeviceGuard guard(hidden.get_device_index());
  const cudaStream_t stream = current_stream(hidden);
  Tensor totals = torch::stable::new_empty(cu_seqlens, {2});
  PlannedRows planned(cu_seqlens, row_ids);
  launch(
      compact_plan,
      dim3(1),
      kPlanThreads,
      0,
      stream,
      data<bool>(keep),
      data<int32_t>(cu_seqlens),
      data<int64_t>(row_ids),
      batch.rows,
      planned.pointers(totals));

  // The sizes of the results are not known before; this is the op's one wait for the device.
  int32_t host_totals[2];
  STD_CUDA_CHECK(cudaMemcpyAsync(
      host_totals, totals.const_data_ptr(), sizeof(host_totals), cudaMemcpyDeviceToHost, stream));
  STD_CUDA_CHECK(cudaStreamSynchronize(stream));
  const int64_t rows = host_totals[0], tokens = host_totals[1];
  Tensor out = torch::stable::new_empty(hidden, {tokens, batch.hidden_size});
  if (rows) launch_copy(hidden, cu_seqlens, planned.offsets, out, stream);
  return {
      out,
      torch::stable::narrow(planned.cu_seqlens, 0, 0, rows + 1),
      torch::stable::narrow(planned.row_ids, 0, 0, rows)};
}

}  // namespace
}  // namespace consistentee

STABLE_TORCH_LIBRARY_IMPL(consistentee, CUDA, m) {
  m.impl("compact", TORCH_BOX(&consistentee::compact));
}
