// exit_step_async: the exit step in two launches, results sized for every row, no wait.

#include <optional>

#include "cuda/exit/compact.h"
#include "kernels/cuda/exit_rows.cuh"

namespace consistentee {
namespace {

void exit_step_async(
    const Tensor& hidden,
    const Tensor& cu_seqlens,
    const Tensor& row_ids,
    const Tensor& pooled,
    const Tensor& classifier_weight,
    const Tensor& classifier_bias,
    const std::optional<Tensor>& dense_weight,
    const std::optional<Tensor>& dense_bias,
    const std::optional<Tensor>& score_weight,
    const std::optional<Tensor>& score_bias,
    int64_t policy_input,
    int64_t state_activation,
    bool multi_label,
    int64_t criterion,
    const Tensor& thresholds,
    int64_t layer,
    int64_t max_streak,
    bool last,
    const Tensor& logits,
    const Tensor& exit_layers,
    const Tensor& exit_scores,
    const Tensor& labels,
    const Tensor& streaks,
    const Tensor& tickets,
    const Tensor& totals,
    const Tensor& out_hidden,
    const Tensor& out_cu_seqlens,
    const Tensor& out_row_ids,
    bool removes) {
  const DeviceBatch batch = check_device_batch(hidden, cu_seqlens, row_ids);
  check_tensor(pooled, "pooled", hidden.scalar_type(), {batch.rows, batch.hidden_size});
  const ExitResults results = check_results(logits, exit_layers, exit_scores, labels, streaks);
  const ExitHead head = check_head(
      batch.hidden_size,
      logits.size(1),
      classifier_weight,
      classifier_bias,
      dense_weight,
      dense_bias,
      score_weight,
      score_bias,
      policy_input,
      state_activation,
      multi_label);
  const ExitDecision decision =
      check_decision(criterion, thresholds, layer, max_streak, last, logits.size(0));
  check_decides(head, decision.criterion);
  check_device(hidden, {&pooled, &classifier_weight, &classifier_bias}, "pooled, classifier");
  for (const auto& weight : {dense_weight, dense_bias, score_weight, score_bias}) {
    if (weight) check_device(hidden, {&*weight}, "dense, score");
  }
  check_device(hidden, {&thresholds}, "thresholds");
  check_device(hidden, {&logits, &exit_layers, &exit_scores, &labels, &streaks}, "results");
  if (tickets.dim() != 1 || tickets.size(0) < 1) fail("tickets: expected shape [1] or more");
  check_tensor(tickets, "tickets", ScalarType::Int, {tickets.size(0)});
  check_device(hidden, {&tickets}, "tickets");
  // On the device, or pinned on the host: the address is the same for both.
  check_tensor(totals, "totals", ScalarType::Int, {2});
  check_tensor(out_hidden, "out_hidden", hidden.scalar_type(), {batch.tokens, batch.hidden_size});
  check_tensor(out_cu_seqlens, "out_cu_seqlens", ScalarType::Int, {batch.rows + 1});
  check_tensor(out_row_ids, "out_row_ids", ScalarType::Long, {batch.rows});
  check_device(hidden, {&out_hidden, &out_cu_seqlens, &out_row_ids}, "out");
  const int64_t memory = exit_rows_memory(head);
  if (memory > kSharedMemory - plan_memory(kExitThreads) - 64)
    fail("hidden size, classes: too large for shared memory");

  const DeviceGuard guard(hidden.get_device_index());
  const cudaStream_t stream = current_stream(hidden);
  if (batch.rows == 0) {
    for (const Tensor* counts : {&totals, &out_cu_seqlens}) {
      const size_t bytes = counts->numel() * sizeof(int32_t);
      STD_CUDA_CHECK(cudaMemsetAsync(counts->mutable_data_ptr(), 0, bytes, stream));
    }
    return;
  }
  const Tensor keep = torch::stable::new_empty(cu_seqlens, {batch.rows}, ScalarType::Bool);
  const Tensor offsets = torch::stable::new_empty(cu_seqlens, {batch.rows});
  const SurvivorPlan plan{
      mutable_data<int32_t>(offsets),
      mutable_data<int32_t>(out_cu_seqlens),
      mutable_data<int64_t>(out_row_ids),
      mutable_data<int32_t>(totals),
      removes};
  dispatch_dtype(hidden, "hidden", [&](auto element) {
    using scalar_t = decltype(element);
    const ExitRows<scalar_t> rows{
        data<scalar_t>(pooled),
        data<int32_t>(cu_seqlens),
        data<int64_t>(row_ids),
        batch.rows,
        mutable_data<bool>(keep),
        mutable_data<int32_t>(tickets)};
    launch(
        exit_rows<scalar_t>,
        dim3(static_cast<unsigned>(batch.rows)),
        kExitThreads,
        memory,
        stream,
        rows,
        head,
        decision,
        results,
        plan);
  });
  if (removes && !last) launch_copy(hidden, cu_seqlens, offsets, out_hidden, stream);
}

}  // namespace
}  // namespace consistentee

STABLE_TORCH_LIBRARY_IMPL(consistentee, CUDA, m) {
  m.impl("exit_step_async", TORCH_BOX(&consistentee::exit_step_async));
}
