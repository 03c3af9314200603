// exit_step: classifier, policy, decision and results of B rows in one pass, then compaction.

#include <algorithm>
#include <optional>
#include <vector>

#include "cpu/batch.h"

namespace consistentee {
namespace {

// The policy's weights, all there or all absent; fills the head's policy fields.
void check_policy(
    ExitHeadParams& head,
    const std::optional<Tensor>& dense_weight,
    const std::optional<Tensor>& dense_bias,
    const std::optional<Tensor>& score_weight,
    const std::optional<Tensor>& score_bias) {
  if (head.policy_input == PolicyInput::kNone) return;
  if (!dense_weight || !dense_bias || !score_weight || !score_bias) {
    fail("policy_input: expected 0 for a head without policy weights");
  }
  if (dense_bias->dim() != 1) fail("dense_bias: expected a tensor of shape [P]");
  head.policy_size = dense_bias->size(0);
  const int64_t features = policy_features(head.policy_input, head.hidden_size);
  check_tensor(*dense_weight, "dense_weight", ScalarType::Float, {head.policy_size, features});
  check_tensor(*dense_bias, "dense_bias", ScalarType::Float, {head.policy_size});
  check_tensor(*score_weight, "score_weight", ScalarType::Float, {head.policy_size});
  check_tensor(*score_bias, "score_bias", ScalarType::Float, {1});
  head.dense_weight = data<float>(*dense_weight);
  head.dense_bias = data<float>(*dense_bias);
  head.score_weight = data<float>(*score_weight);
  head.score_bias = data<float>(*score_bias);
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor> exit_step(
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
    int64_t criterion,
    double threshold,
    int64_t layer,
    int64_t max_streak,
    bool last,
    const Tensor& logits,
    const Tensor& exit_layers,
    const Tensor& exit_scores,
    const Tensor& labels,
    const Tensor& streaks) {
  const Batch batch = check_batch(hidden, cu_seqlens);
  check_tensor(row_ids, "row_ids", ScalarType::Long, {batch.rows});
  check_tensor(pooled, "pooled", hidden.scalar_type(), {batch.rows, batch.hidden_size});
  if (logits.dim() != 2) fail("logits: expected a tensor of shape [N, C]");
  const int64_t all_rows = logits.size(0), classes = logits.size(1);
  check_tensor(
      classifier_weight, "classifier_weight", ScalarType::Float, {classes, batch.hidden_size});
  check_tensor(classifier_bias, "classifier_bias", ScalarType::Float, {classes});
  check_tensor(logits, "logits", ScalarType::Float, {all_rows, classes});
  check_tensor(exit_layers, "exit_layers", ScalarType::Long, {all_rows});
  check_tensor(exit_scores, "exit_scores", ScalarType::Float, {all_rows});
  check_tensor(labels, "labels", ScalarType::Int, {all_rows});
  check_tensor(streaks, "streaks", ScalarType::Int, {all_rows});
  if (policy_input < 0 || policy_input > 3) fail("policy_input: expected 0, 1, 2 or 3");
  if (criterion < 0 || criterion > 3) fail("criterion: expected 0, 1, 2 or 3");
  const int64_t* ids = data<int64_t>(row_ids);
  for (int64_t row = 0; row < batch.rows; ++row) {
    if (ids[row] < 0 || ids[row] >= all_rows) fail("row_ids: expected numbers from 0 to N - 1");
  }

  ExitHeadParams head{};
  head.classifier_weight = data<float>(classifier_weight);
  head.classifier_bias = data<float>(classifier_bias);
  head.hidden_size = batch.hidden_size;
  head.classes = classes;
  head.policy_input = static_cast<PolicyInput>(policy_input);
  head.criterion = static_cast<Criterion>(criterion);
  head.threshold = static_cast<float>(threshold);
  head.layer = layer;
  head.max_streak = max_streak;
  head.last = last;
  check_policy(head, dense_weight, dense_bias, score_weight, score_bias);

  const ExitResults results{
      mutable_data<float>(logits),
      mutable_data<int64_t>(exit_layers),
      mutable_data<float>(exit_scores),
      mutable_data<int32_t>(labels),
      mutable_data<int32_t>(streaks),
  };
  std::vector<uint8_t> keep(batch.rows);
  dispatch(pooled, "pooled", [&](const auto& kernels, auto element) {
    using scalar_t = decltype(element);
    const int64_t blocks = (batch.rows + kRowBlock - 1) / kRowBlock;
    torch::stable::parallel_for(0, blocks, 2, [&](int64_t begin, int64_t end) {
      std::vector<float> scratch(exit_scratch(head));
      kernels.exit_rows(
          head,
          data<scalar_t>(pooled),
          ids,
          begin * kRowBlock,
          std::min(end * kRowBlock, batch.rows),
          results,
          keep.data(),
          scratch.data());
    });
  });
  if (std::find(keep.begin(), keep.end(), 0) == keep.end()) {
    return {
        torch::stable::new_empty(hidden, {0, batch.hidden_size}),
        torch::stable::new_empty(cu_seqlens, {0}),
        torch::stable::new_empty(row_ids, {0})};
  }
  return compact_rows(batch, hidden, row_ids, keep.data());
}

}  // namespace consistentee

STABLE_TORCH_LIBRARY_IMPL(consistentee, CPU, m) {
  m.impl("exit_step", TORCH_BOX(&consistentee::exit_step));
}
