// exit_rows: classifier, policy and decision of a range of rows.
#pragma once

#include <algorithm>

#include "consistentee/approx.h"
#include "cpu/kernels.h"

namespace consistentee::CONSISTENTEE_SIMD {
namespace {

// out[i] += weight . x[i] for the rows of a block.
inline void dot_block(const float* weight, const float* const* x, int64_t size, float* out) {
  const float* x0 = x[0];
  const float* x1 = x[1];
  const float* x2 = x[2];
  const float* x3 = x[3];
  float s0 = 0.0f, s1 = 0.0f, s2 = 0.0f, s3 = 0.0f;
#pragma omp simd reduction(+ : s0, s1, s2, s3)
  for (int64_t h = 0; h < size; ++h) {
    const float w = weight[h];
    s0 += w * x0[h];
    s1 += w * x1[h];
    s2 += w * x2[h];
    s3 += w * x3[h];
  }
  out[0] += s0;
  out[1] += s1;
  out[2] += s2;
  out[3] += s3;
}
static_assert(kRowBlock == 4, "dot_block is written for four rows");

inline Prediction statistics_of(const float* logits, int64_t classes) {
  float max = logits[0];
  for (int64_t c = 1; c < classes; ++c) max = logits[c] > max ? logits[c] : max;
  float total = 0.0f, weighted = 0.0f;
#pragma omp simd reduction(+ : total, weighted)
  for (int64_t c = 0; c < classes; ++c) {
    const float shifted = logits[c] - max;
    const float e = exp_approx(shifted);
    total += e;
    weighted += e * shifted;
  }
  return predict(logits, classes, total, weighted);
}

template <typename scalar_t>
void exit_rows(
    const ExitHeadParams& head,
    const scalar_t* pooled,
    const int64_t* row_ids,
    int64_t begin,
    int64_t end,
    const ExitResults& results,
    uint8_t* keep,
    float* scratch) {
  const int64_t H = head.hidden_size, C = head.classes;
  const int64_t state_features = reads_state(head.policy_input) ? H : 0;
  const int64_t features = policy_features(head.policy_input, H);
  const bool uses_policy =
      head.criterion == Criterion::kPolicy && head.policy_input != PolicyInput::kNone;

  float* logits = scratch + kRowBlock * H;
  float* statistics = logits + kRowBlock * C;
  for (int64_t first = begin; first < end; first += kRowBlock) {
    const int64_t count = std::min(kRowBlock, end - first);
    // A short block repeats its last row: every row's sums are taken in the same order whatever
    // rows it shares the block with.
    const float* states[kRowBlock];
    for (int64_t i = 0; i < kRowBlock; ++i) states[i] = scratch + std::min(i, count - 1) * H;
    for (int64_t i = 0; i < count; ++i) {
      const scalar_t* source = pooled + (first + i) * H;
      float* state = scratch + i * H;
#pragma omp simd
      for (int64_t h = 0; h < H; ++h) state[h] = tanh_approx(to_float(source[h]));
    }

    for (int64_t c = 0; c < C; ++c) {
      float z[kRowBlock] = {};
      dot_block(head.classifier_weight + c * H, states, H, z);
      for (int64_t i = 0; i < kRowBlock; ++i) logits[i * C + c] = z[i] + head.classifier_bias[c];
    }
    Prediction predictions[kRowBlock];
    for (int64_t i = 0; i < count; ++i) predictions[i] = statistics_of(logits + i * C, C);

    float probability[kRowBlock] = {1.0f, 1.0f, 1.0f, 1.0f};
    if (uses_policy) {
      for (int64_t i = 0; i < count; ++i) {
        const Prediction& p = predictions[i];
        const bool agrees = results.labels[row_ids[first + i]] == p.label;
        float* out = statistics + i * kNumStatistics;
        out[0] = p.top;
        out[1] = p.margin;
        out[2] = p.certainty;
        out[3] = p.logit_margin;
        out[4] = agrees ? 1.0f : 0.0f;
      }
      float score[kRowBlock] = {};
      for (int64_t p = 0; p < head.policy_size; ++p) {
        const float* weight = head.dense_weight + p * features;
        float inner[kRowBlock] = {};
        dot_block(weight, states, state_features, inner);
        for (int64_t i = 0; i < count; ++i) {
          for (int64_t k = state_features; k < features; ++k) {
            inner[i] += weight[k] * statistics[i * kNumStatistics + k - state_features];
          }
          score[i] += head.score_weight[p] * gelu(inner[i] + head.dense_bias[p]);
        }
      }
      for (int64_t i = 0; i < count; ++i) probability[i] = sigmoid(score[i] + head.score_bias[0]);
    }

    for (int64_t i = 0; i < count; ++i) {
      keep[first + i] = settle_row(
          head, results, row_ids[first + i], logits + i * C, predictions[i], probability[i]);
    }
  }
}

}  // namespace
}  // namespace consistentee::CONSISTENTEE_SIMD
