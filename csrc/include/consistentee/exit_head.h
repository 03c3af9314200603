// The exit head's parameters, and the arithmetic of one row once its logits are known.
//
// Letters: B rows, H hidden size, C classes, P policy size, N rows the caller gave.
#pragma once

#include <cmath>
#include <cstdint>

#include "consistentee/qualifiers.h"

namespace consistentee {

// The numbers are part of the op's schema: consistentee_ext/ops.py sends them.
enum class PolicyInput : int64_t { kNone = 0, kState = 1, kPrediction = 2, kBoth = 3 };
enum class Criterion : int64_t {
  kPolicy = 0,
  kConfidence = 1,
  kEntropy = 2,
  kPatience = 3,
  kEnergy = 4,
  kCount  // of the above
};

constexpr int kNumStatistics = 5;

struct ExitHeadParams {
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
  Criterion criterion;
  float threshold;
  int64_t layer;
  int64_t max_streak;
  bool last;
};

// Results of the N rows, in the caller's order.
struct ExitResults {
  float* logits;         // [N, C]
  int64_t* exit_layers;  // [N]
  float* exit_scores;    // [N]
  int32_t* labels;       // [N]
  int32_t* streaks;      // [N]
};

struct Prediction {
  int32_t label;
  float top;           // probability of the label
  float margin;        // to the second most probable class
  float certainty;     // 1 - entropy / log(C)
  float logit_margin;  // between the two top logits
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

// gelu(x) = x / 2 * (1 + erf(x / sqrt(2)))
CONSISTENTEE_INLINE float gelu(float x) {
  return 0.5f * x * (1.0f + erff(x * 0.70710678118654752f));
}

CONSISTENTEE_INLINE float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

// Statistics of C logits, more than one, of which `label` is the largest and `second` the next.
// `total = sum exp(z - max)`, `weighted = sum exp(z - max) (z - max)`, so that
// entropy = log(total) - weighted / total.
CONSISTENTEE_INLINE Prediction prediction_of(
    const float* logits,
    int64_t classes,
    int64_t label,
    int64_t second,
    float total,
    float weighted) {
  const float logit_margin = logits[label] - logits[second];
  const float top = 1.0f / total;
  const float entropy = logf(total) - weighted / total;
  return {
      static_cast<int32_t>(label),
      top,
      top - expf(-logit_margin) / total,
      1.0f - entropy / logf(static_cast<float>(classes)),
      logit_margin,
  };
}

// Of a single class: certain, unless its logit is not finite.
CONSISTENTEE_INLINE Prediction only_class(float logit) {
  return {0, 1.0f + (logit - logit), 0.0f, 1.0f, 0.0f};
}

// Label and statistics of C logits.
CONSISTENTEE_INLINE Prediction
predict(const float* logits, int64_t classes, float total, float weighted) {
  int64_t label = 0;
  for (int64_t c = 1; c < classes; ++c) {
    // A NaN logit wins, as in torch.argmax: the caller sees it in the results.
    const bool greater = logits[c] > logits[label] || logits[c] != logits[c];
    if (greater && logits[label] == logits[label]) label = c;
  }
  if (classes == 1) return only_class(logits[0]);
  int64_t second = label == 0 ? 1 : 0;
  for (int64_t c = second + 1; c < classes; ++c) {
    if (c != label && logits[c] > logits[second]) second = c;
  }
  return prediction_of(logits, classes, label, second, total, weighted);
}

// sigmoid(log sum exp(z)): the largest logit is `highest`, its probability `top`.
CONSISTENTEE_INLINE float energy_score(float highest, float top) {
  const float above = -logf(top);  // not a number where `highest` is not finite, and the sum is it
  return sigmoid(above > 0.0f ? highest + above : highest);
}

// Writes the results of one row and says whether it stays in the batch.
CONSISTENTEE_INLINE bool settle_row(
    const ExitHeadParams& head,
    const ExitResults& results,
    int64_t row_id,
    const float* logits,
    const Prediction& prediction,
    float policy_probability) {
  const bool agrees = results.labels[row_id] == prediction.label;
  const int32_t streak = agrees ? results.streaks[row_id] + 1 : 0;
  results.labels[row_id] = prediction.label;
  results.streaks[row_id] = streak;

  float score = policy_probability;
  if (head.criterion == Criterion::kConfidence) score = prediction.top;
  if (head.criterion == Criterion::kEntropy) score = prediction.certainty;
  if (head.criterion == Criterion::kPatience) {
    const int64_t most = head.max_streak > 1 ? head.max_streak : 1;
    score = static_cast<float>(streak) / static_cast<float>(most);
  }
  if (head.criterion == Criterion::kEnergy) {
    score = energy_score(logits[prediction.label], prediction.top);
  }
  // A NaN score never exceeds the threshold: the row goes on, and leaves at the last layer.
  if (!head.last && !(score > head.threshold)) return true;

  for (int64_t c = 0; c < head.classes; ++c) results.logits[row_id * head.classes + c] = logits[c];
  results.exit_layers[row_id] = head.layer;
  results.exit_scores[row_id] = score;
  return false;
}

}  // namespace consistentee
