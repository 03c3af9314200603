// Checks of the ops' arguments that devices share.
#pragma once

#include <optional>

#include "kernels/exit_head.h"
#include "kernels/scalar.h"
#include "stable.h"

namespace consistentee {

// Calls f with an element of the type of `tensor`.
template <typename F>
void dispatch_dtype(const Tensor& tensor, const char* name, const F& f) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float: return f(float{});
    case ScalarType::BFloat16: return f(BFloat16{});
    case ScalarType::Half: return f(Half{});
    default:
      fail(
          std::string(name) + ": expected float32, bfloat16 or float16, got " +
          torch::headeronly::toString(tensor.scalar_type()));
  }
}

inline void check_number(int64_t number, const char* name, int64_t count) {
  if (number >= 0 && number < count) return;
  fail(std::string(name) + ": expected a number from 0 to " + std::to_string(count - 1));
}

inline void check_hidden(const Tensor& hidden) {
  if (hidden.dim() != 2 || !hidden.is_contiguous()) {
    fail("hidden: expected a contiguous tensor of shape [T, H]");
  }
}

// B of offsets [B+1].
inline int64_t count_rows(const Tensor& offsets, const char* name) {
  if (offsets.dim() != 1 || offsets.size(0) < 1) {
    fail(std::string(name) + ": expected a tensor of shape [B + 1]");
  }
  return offsets.size(0) - 1;
}

// Hidden and residual [T, H], weight and bias [H], of one dtype.
inline void check_norm(
    const Tensor& hidden,
    const Tensor& residual,
    const Tensor& weight,
    const std::optional<Tensor>& bias) {
  check_hidden(hidden);
  const ScalarType dtype = hidden.scalar_type();
  check_tensor(residual, "residual", dtype, {hidden.size(0), hidden.size(1)});
  check_tensor(weight, "weight", dtype, {hidden.size(1)});
  if (bias) check_tensor(*bias, "bias", dtype, {hidden.size(1)});
}

// Logits [N, C] and the rest [N], contiguous.
inline ExitResults check_results(
    const Tensor& logits,
    const Tensor& exit_layers,
    const Tensor& exit_scores,
    const Tensor& labels,
    const Tensor& streaks) {
  if (logits.dim() != 2) fail("logits: expected a tensor of shape [N, C]");
  const int64_t rows = logits.size(0);
  check_tensor(logits, "logits", ScalarType::Float, {rows, logits.size(1)});
  check_tensor(exit_layers, "exit_layers", ScalarType::Long, {rows});
  check_tensor(exit_scores, "exit_scores", ScalarType::Float, {rows});
  check_tensor(labels, "labels", ScalarType::Int, {rows});
  check_tensor(streaks, "streaks", ScalarType::Int, {rows});
  return {
      mutable_data<float>(logits),
      mutable_data<int64_t>(exit_layers),
      mutable_data<float>(exit_scores),
      mutable_data<int32_t>(labels),
      mutable_data<int32_t>(streaks)};
}

// Weights of a head in float32; those of the policy are all there, or none is.
inline ExitHead check_head(
    int64_t hidden_size,
    int64_t classes,
    const Tensor& classifier_weight,
    const Tensor& classifier_bias,
    const std::optional<Tensor>& dense_weight,
    const std::optional<Tensor>& dense_bias,
    const std::optional<Tensor>& score_weight,
    const std::optional<Tensor>& score_bias,
    int64_t policy_input,
    int64_t state_activation,
    bool multi_label) {
  check_tensor(classifier_weight, "classifier_weight", ScalarType::Float, {classes, hidden_size});
  check_tensor(classifier_bias, "classifier_bias", ScalarType::Float, {classes});
  check_number(policy_input, "policy_input", 4);
  check_number(state_activation, "state_activation", static_cast<int64_t>(StateActivation::kCount));
  ExitHead head{};
  head.classifier_weight = data<float>(classifier_weight);
  head.classifier_bias = data<float>(classifier_bias);
  head.hidden_size = hidden_size;
  head.classes = classes;
  head.policy_input = static_cast<PolicyInput>(policy_input);
  head.activation = static_cast<StateActivation>(state_activation);
  head.multi_label = multi_label;
  if (head.policy_input == PolicyInput::kNone) return head;

  if (!dense_weight || !dense_bias || !score_weight || !score_bias) {
    fail("policy_input: expected 0 for a head without policy weights");
  }
  if (dense_bias->dim() != 1) fail("dense_bias: expected a tensor of shape [P]");
  head.policy_size = dense_bias->size(0);
  const int64_t features = policy_features(head.policy_input, hidden_size);
  check_tensor(*dense_weight, "dense_weight", ScalarType::Float, {head.policy_size, features});
  check_tensor(*dense_bias, "dense_bias", ScalarType::Float, {head.policy_size});
  check_tensor(*score_weight, "score_weight", ScalarType::Float, {head.policy_size});
  check_tensor(*score_bias, "score_bias", ScalarType::Float, {1});
  head.dense_weight = data<float>(*dense_weight);
  head.dense_bias = data<float>(*dense_bias);
  head.score_weight = data<float>(*score_weight);
  head.score_bias = data<float>(*score_bias);
  return head;
}

inline Criterion check_criterion(int64_t criterion) {
  check_number(criterion, "criterion", static_cast<int64_t>(Criterion::kCount));
  return static_cast<Criterion>(criterion);
}

inline void check_decides(const ExitHead& head, Criterion criterion) {
  if (head.multi_label && criterion == Criterion::kEnergy) {
    fail("criterion: expected one of independent labels, got energy");
  }
}

// Between the elements of the last dimension, of size N: 1, or 0 where one stands for all.
inline int64_t check_threshold_stride(const Tensor& thresholds, int64_t rows) {
  const int64_t dim = thresholds.dim() - 1;
  if (dim < 0 || thresholds.scalar_type() != ScalarType::Float || thresholds.size(dim) != rows) {
    fail("thresholds: expected float32, one for each row of the results");
  }
  const int64_t stride = rows > 1 ? thresholds.stride(dim) : 0;
  if (stride != 0 && stride != 1) fail("thresholds: expected neighbours, or one for all rows");
  return stride;
}

// Thresholds [N] float32 of the N rows.
inline ExitDecision check_decision(
    int64_t criterion,
    const Tensor& thresholds,
    int64_t layer,
    int64_t max_streak,
    bool last,
    int64_t rows) {
  if (thresholds.dim() != 1) fail("thresholds: expected a tensor of shape [N]");
  const int64_t stride = check_threshold_stride(thresholds, rows);
  return {check_criterion(criterion), data<float>(thresholds), stride, layer, max_streak, last};
}

}  // namespace consistentee
