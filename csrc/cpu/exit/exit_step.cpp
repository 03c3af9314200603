// exit_step: classifier, policy, decision and results of B rows in one pass, then compaction.

#include <algorithm>
#include <memory>
#include <vector>

#include "cpu/exit/exit.h"

namespace consistentee {

std::optional<PackedRows> exit_rows(
    const Batch& batch,
    const Tensor& hidden,
    const Tensor& row_ids,
    const Tensor& pooled,
    const ExitHead& head,
    const ExitDecision& decision,
    const ExitResults& results) {
  check_tensor(pooled, "pooled", hidden.scalar_type(), {batch.rows, batch.hidden_size});
  std::vector<uint8_t> keep(batch.rows);
  dispatch(pooled, "pooled", [&](const auto& kernels, auto element) {
    using scalar_t = decltype(element);
    const int64_t blocks = (batch.rows + kRowBlock - 1) / kRowBlock;
    torch::stable::parallel_for(0, blocks, 2, [&](int64_t begin, int64_t end) {
      const std::unique_ptr<float[]> scratch(new float[exit_scratch(head)]);  // no zeros needed
      kernels.exit_rows(
          head,
          decision,
          data<scalar_t>(pooled),
          data<int64_t>(row_ids),
          begin * kRowBlock,
          std::min(end * kRowBlock, batch.rows),
          results,
          keep.data(),
          scratch.get());
    });
  });
  if (std::find(keep.begin(), keep.end(), 0) == keep.end()) return std::nullopt;
  return compact_rows(batch, hidden, row_ids, keep.data());
}

namespace {

PackedRows exit_step(
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
    const Tensor& streaks) {
  const Batch batch = check_batch(hidden, cu_seqlens);
  const ExitResults results = check_results(logits, exit_layers, exit_scores, labels, streaks);
  const int64_t all_rows = logits.size(0);
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
      check_decision(criterion, thresholds, layer, max_streak, last, all_rows);
  check_decides(head, decision.criterion);
  check_row_ids(row_ids, batch.rows, all_rows);
  if (auto survivors = exit_rows(batch, hidden, row_ids, pooled, head, decision, results)) {
    return *survivors;
  }
  return {
      torch::stable::new_empty(hidden, {0, batch.hidden_size}),
      torch::stable::new_empty(cu_seqlens, {0}),
      torch::stable::new_empty(row_ids, {0})};
}

}  // namespace
}  // namespace consistentee

STABLE_TORCH_LIBRARY_IMPL(consistentee, CPU, m) {
  m.impl("exit_step", TORCH_BOX(&consistentee::exit_step));
}
