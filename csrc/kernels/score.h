// The exit criteria: what a row's score is, from its logits and what its policy says.
//
// A criterion is a case of score_of, a number in `Criterion`, and an entry of
// consistentee_ext/criteria.py, whose order gives the number.
#pragma once

#include <cmath>
#include <cstdint>

#include "kernels/approx.h"
#include "kernels/qualifiers.h"

namespace consistentee {

enum class Criterion : int64_t {
  kPolicy = 0,
  kConfidence = 1,
  kEntropy = 2,
  kPatience = 3,
  kEnergy = 4,
  kCount  // of the above
};

// Of independent labels the label is 0, and the rest that of the least sure one, see predict_set.
struct Prediction {
  int32_t label;
  float top;           // probability of the label
  float margin;        // to the second most probable class
  float certainty;     // 1 - entropy / log(C)
  float logit_margin;  // between the two top logits
};

CONSISTENTEE_INLINE float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

// Statistics of C logits, more than one, of which `label` is the largest, by `logit_margin`.
// `total = sum exp(z - max)`, `weighted = sum exp(z - max) (z - max)`, so that
// entropy = log(total) - weighted / total.
CONSISTENTEE_INLINE Prediction
prediction_of(int64_t label, int64_t classes, float logit_margin, float total, float weighted) {
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
  return prediction_of(label, classes, logits[label] - logits[second], total, weighted);
}

// Of C independent labels: of the least sure one as two classes, with the logits min |z| and 0.
// A NaN is the least sure.
CONSISTENTEE_INLINE Prediction predict_set(const float* logits, int64_t classes) {
  float least = fabsf(logits[0]);
  for (int64_t c = 1; c < classes; ++c) {
    const float magnitude = fabsf(logits[c]);
    if (magnitude < least || magnitude != magnitude) least = magnitude;
  }
  const float same = least - least;  // NaN where it is not finite
  const float first = exp_approx(same), second = exp_approx(-least);
  return prediction_of(0, 2, least, first + second, first * same - second * least);
}

// sigmoid(log sum exp(z)): the largest logit is `highest`, its probability `top`.
CONSISTENTEE_INLINE float energy_score(float highest, float top) {
  const float above = -logf(top);  // NaN where `highest` is not finite: then the sum is `highest`
  return sigmoid(above > 0.0f ? highest + above : highest);
}

// `streak`: how many exit layers in a row agreed with the one before, of at most `max_streak`.
CONSISTENTEE_INLINE float score_of(
    Criterion criterion,
    const float* logits,
    const Prediction& prediction,
    int32_t streak,
    int64_t max_streak,
    float policy_probability) {
  if (criterion == Criterion::kConfidence) return prediction.top;
  if (criterion == Criterion::kEntropy) return prediction.certainty;
  if (criterion == Criterion::kPatience) {
    return static_cast<float>(streak) / static_cast<float>(max_streak > 1 ? max_streak : 1);
  }
  if (criterion == Criterion::kEnergy)
    return energy_score(logits[prediction.label], prediction.top);
  return policy_probability;
}

}  // namespace consistentee
