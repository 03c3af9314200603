// What the exit step launches once it is known where the surviving rows go.

#include "cuda/exit/compact.h"

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
      copy_rows,
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

}  // namespace consistentee
