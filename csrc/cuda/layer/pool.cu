// add_norm_pool_: layer norm of a sum, and the pooling of the rows with it.

#include "kernels/cuda/pool.cuh"

#include "cuda/layer/norm.h"

namespace consistentee {
namespace {

// How rows are pooled; the memory for their sums is still to come.
RowPooling check_pooling(
    const Tensor& hidden,
    const Tensor& cu_seqlens,
    int64_t rows,
    const std::string& pooling,
    const Tensor& tickets,
    const std::optional<Tensor>& row_ids,
    const std::optional<Tensor>& first_lengths) {
  check_tensor(cu_seqlens, "cu_seqlens", ScalarType::Int, {rows + 1});
  if (tickets.dim() != 1 || tickets.size(0) < rows) fail("tickets: expected one a row");
  check_tensor(tickets, "tickets", ScalarType::Int, {tickets.size(0)});
  check_device(hidden, {&cu_seqlens, &tickets}, "cu_seqlens, tickets");
  RowPooling target{};
  target.cu_seqlens = data<int32_t>(cu_seqlens);
  target.tickets = mutable_data<int32_t>(tickets);
  target.pair = pooling == "pair";
  target.mean = target.pair || pooling == "mean";
  if (!target.mean && pooling != "cls") fail("pooling: expected cls, mean or pair, got " + pooling);
  if (!target.pair) return target;

  if (!row_ids || !first_lengths) fail("row_ids, first_lengths: expected both with pooling pair");
  check_tensor(*row_ids, "row_ids", ScalarType::Long, {rows});
  if (first_lengths->dim() != 1) fail("first_lengths: expected a tensor of shape [N]");
  check_tensor(*first_lengths, "first_lengths", ScalarType::Int, {first_lengths->size(0)});
  check_device(hidden, {&*row_ids, &*first_lengths}, "row_ids, first_lengths");
  target.row_ids = data<int64_t>(*row_ids);
  target.first_lengths = data<int32_t>(*first_lengths);
  return target;
}

Tensor add_norm_pool_(
    const Tensor& hidden,
    const Tensor& residual,
    const Tensor& weight,
    const Tensor& bias,
    double eps,
    const Tensor& cu_seqlens,
    int64_t max_length,
    const std::string& pooling,
    const Tensor& tickets,
    const std::optional<Tensor>& row_ids,
    const std::optional<Tensor>& first_lengths) {
  check_device_norm(hidden, residual, weight, bias);
  const int64_t rows = count_rows(cu_seqlens, "cu_seqlens"), size = hidden.size(1);
  if (max_length < 1) fail("max_length: expected a positive length");
  RowPooling target =
      check_pooling(hidden, cu_seqlens, rows, pooling, tickets, row_ids, first_lengths);
  const DeviceGuard guard(hidden.get_device_index());
  Tensor pooled = torch::stable::new_empty(hidden, {rows, target.pair ? kCompared * size : size});
  if (pooled.numel() == 0 || hidden.numel() == 0) return pooled;
  const int64_t splits = (max_length + kPoolTokens - 1) / kPoolTokens + (target.pair ? 1 : 0);
  Tensor partial =
      torch::stable::new_empty(hidden, {target.mean ? rows * splits * size : 0}, ScalarType::Float);
  target.partial = mutable_data<float>(partial);
  const int warps = norm_warps(size);
  dispatch_dtype(hidden, "hidden", [&](auto element) {
    using scalar_t = decltype(element);
    launch(
        add_norm_pool<scalar_t>,
        dim3(static_cast<unsigned>(rows), static_cast<unsigned>(splits)),
        warps * kWarp,
        4 * warps * size,
        current_stream(hidden),
        norm_of<scalar_t>(hidden, residual, weight, bias, eps),
        target,
        mutable_data<scalar_t>(pooled));
  });
  return pooled;
}

}  // namespace
}  // namespace consistentee

STABLE_TORCH_LIBRARY_IMPL(consistentee, CUDA, m) {
  m.impl("add_norm_pool_", TORCH_BOX(&consistentee::add_norm_pool_));
}
