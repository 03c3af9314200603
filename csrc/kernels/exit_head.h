// The exit of a layer: its weights, how it decides, and the decision about one row whose logits are
// known, whatever product they came from.
//
// Letters: B rows, H hidden size, C classes, P policy size, N rows the caller gave.
#pragma once

#include "kernels/score.h"

namespace consistentee {

// The numbers are part of the ops' schemas: consistentee_ext/criteria.py lists the names.
enum class PolicyInput : int64_t { kNone = 0, kState = 1, kPrediction = 2, kBoth = 3 };
enum class StateActivation : int64_t {
  kTanh = 0,
  kRelu = 1,
  kNone = 2,
  kCount  // of the above
};

constexpr int kNumStatistics = 5;

struct ExitHead {
  const float* classifier_weight;  // [C, H]
  const float* classifier_bias;    // [C]
  const float* dense_weight;       // [P, F], F = H, 5 or H + 5 by policy_input
  const float* dense_bias;         // [P]
  const float* score_weight;       // [P]
  const float* score_bias;         // [1]
  int64_t hidden_size;
  int64_t classes;
  int64_t policy_size;
  PolicyInput policy_input;
  StateActivation activation;  // of the pooler's product
  bool multi_label;            // labels are independent: the answer is the set of those above 0
};

struct ExitDecision {
  Criterion criterion;
  const float* thresholds;   // of the N rows, `threshold_stride` elements apart
  int64_t threshold_stride;  // 1, or 0 where all rows share one
  int64_t layer;             // 1-based
  int64_t max_streak;        // the number of exit layers less one
  bool last;                 // every row leaves
};

// Results of the N rows, in the caller's order.
struct ExitResults {
  float* logits;         // [N, C], of independent labels those of the last exit layer seen
  int64_t* exit_layers;  // [N]
  float* exit_scores;    // [N]
  int32_t* labels;       // [N], of independent labels 0 from the first exit layer on
  int32_t* streaks;      // [N]
};

CONSISTENTEE_INLINE bool reads_state(PolicyInput input) {
  return input == PolicyInput::kState || input == PolicyInput::kBoth;
}

CONSISTENTEE_INLINE bool reads_prediction(PolicyInput input) {
  return input == PolicyInput::kPrediction || input == PolicyInput::kBoth;
}

// F, the number of features a policy reads.
CONSISTENTEE_INLINE int64_t policy_features(PolicyInput input, int64_t hidden_size) {
  return (reads_state(input) ? hidden_size : 0) + (reads_prediction(input) ? kNumStatistics : 0);
}

// Whether the policy of `head` is to be computed.
CONSISTENTEE_INLINE bool uses_policy(const ExitHead& head, const ExitDecision& decision) {
  return decision.criterion == Criterion::kPolicy && head.policy_input != PolicyInput::kNone;
}

// relu(x); NaN stays NaN, as in torch.relu.
CONSISTENTEE_INLINE float relu(float x) { return x < 0.0f ? 0.0f : x; }

CONSISTENTEE_INLINE float activate(StateActivation activation, float x) {
  if (activation == StateActivation::kNone) return x;
  return activation == StateActivation::kRelu ? relu(x) : tanh_approx(x);
}

// gelu(x) = x / 2 * (1 + erf(x / sqrt(2)))
CONSISTENTEE_INLINE float gelu(float x) {
  return 0.5f * x * (1.0f + erff(x * 0.70710678118654752f));
}

// Whether the answer is that of the exit layer before.
CONSISTENTEE_INLINE bool agrees_with_last(
    const ExitHead& head,
    const ExitResults& results,
    int64_t row_id,
    const float* logits,
    const Prediction& prediction) {
  if (results.labels[row_id] != prediction.label) return false;
  if (!head.multi_label) return true;
  const float* last = results.logits + row_id * head.classes;
  for (int64_t c = 0; c < head.classes; ++c) {
    if ((last[c] > 0.0f) != (logits[c] > 0.0f)) return false;
  }
  return true;
}

// The features of a prediction that a policy reads, kNumStatistics of them.
CONSISTENTEE_INLINE void write_statistics(
    const Prediction& prediction, bool agrees, float* statistics) {
  statistics[0] = prediction.top;
  statistics[1] = prediction.margin;
  statistics[2] = prediction.certainty;
  statistics[3] = prediction.logit_margin;
  statistics[4] = agrees ? 1.0f : 0.0f;
}

// Writes the results of one row of logits and says whether it stays in the batch.
CONSISTENTEE_INLINE bool decide_row(
    const ExitHead& head,
    const ExitDecision& decision,
    const ExitResults& results,
    int64_t row_id,
    const float* logits,
    const Prediction& prediction,
    bool agrees,
    float policy_probability) {
  const int32_t streak = agrees ? results.streaks[row_id] + 1 : 0;
  results.labels[row_id] = prediction.label;
  results.streaks[row_id] = streak;
  const float score = score_of(
      decision.criterion, logits, prediction, streak, decision.max_streak, policy_probability);
  const float threshold = decision.thresholds[row_id * decision.threshold_stride];
  // A NaN score never exceeds the threshold: the row stays, and leaves at the last layer.
  const bool stays = !decision.last && !(score > threshold);
  if (!stays || head.multi_label) {
    float* out = results.logits + row_id * head.classes;
    for (int64_t c = 0; c < head.classes; ++c) out[c] = logits[c];
  }
  if (stays) return true;
  results.exit_layers[row_id] = decision.layer;
  results.exit_scores[row_id] = score;
  return false;
}

}  // namespace consistentee
