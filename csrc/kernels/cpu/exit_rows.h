// exit_rows: classifier, policy and decision of a range of rows.
#pragma once

#include <algorithm>

#include "kernels/approx.h"
#include "kernels/cpu/table.h"

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

// state = activation(pooled), both [H].
template <typename scalar_t>
void activate_row(const ExitHead& head, const scalar_t* pooled, float* state) {
  const int64_t size = head.hidden_size;
  if (head.activation == StateActivation::kRelu) {
#pragma omp simd
    for (int64_t h = 0; h < size; ++h) state[h] = relu(to_float(pooled[h]));
  } else if (head.activation == StateActivation::kNone) {
#pragma omp simd
    for (int64_t h = 0; h < size; ++h) state[h] = to_float(pooled[h]);
  } else {
#pragma omp simd
    for (int64_t h = 0; h < size; ++h) state[h] = tanh_approx(to_float(pooled[h]));
  }
}

// logits [count, C] of a block of states.
inline void classify_block(
    const ExitHead& head, const float* const* states, int64_t count, float* logits) {
  const int64_t H = head.hidden_size, C = head.classes;
  for (int64_t c = 0; c < C; ++c) {
    float z[kRowBlock] = {};
    dot_block(head.classifier_weight + c * H, states, H, z);
    for (int64_t i = 0; i < count; ++i) logits[i * C + c] = z[i] + head.classifier_bias[c];
  }
}

inline Prediction predict_classes(const float* logits, int64_t classes) {
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

inline Prediction predict_row(const ExitHead& head, const float* logits) {
  if (head.multi_label) return predict_set(logits, head.classes);
  return predict_classes(logits, head.classes);
}

// Exit probabilities of a block, from its states and its statistics [count, kNumStatistics].
inline void run_policy(
    const ExitHead& head,
    const float* const* states,
    const float* statistics,
    int64_t count,
    float* probability) {
  const int64_t state_features = reads_state(head.policy_input) ? head.hidden_size : 0;
  const int64_t features = policy_features(head.policy_input, head.hidden_size);
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

template <typename scalar_t>
void exit_rows(
    const ExitHead& head,
    const ExitDecision& decision,
    const scalar_t* pooled,
    const int64_t* row_ids,
    int64_t begin,
    int64_t end,
    const ExitResults& results,
    uint8_t* keep,
    float* scratch) {
  const int64_t H = head.hidden_size, C = head.classes;
  float* logits = scratch + kRowBlock * H;
  float* statistics = logits + kRowBlock * C;
  for (int64_t first = begin; first < end; first += kRowBlock) {
    const int64_t count = std::min(kRowBlock, end - first);
    // A short block repeats its last row: every row's sums are taken in the same order whatever
    // rows it shares the block with.
    const float* states[kRowBlock];
    for (int64_t i = 0; i < kRowBlock; ++i) states[i] = scratch + std::min(i, count - 1) * H;
    for (int64_t i = 0; i < count; ++i) {
      activate_row(head, pooled + (first + i) * H, scratch + i * H);
    }
    classify_block(head, states, count, logits);
    Prediction predictions[kRowBlock];
    bool agrees[kRowBlock];
    for (int64_t i = 0; i < count; ++i) {
      const float* z = logits + i * C;
      predictions[i] = predict_row(head, z);
      agrees[i] = agrees_with_last(head, results, row_ids[first + i], z, predictions[i]);
    }
    float probability[kRowBlock] = {1.0f, 1.0f, 1.0f, 1.0f};
    if (uses_policy(head, decision)) {
      for (int64_t i = 0; i < count; ++i) {
        write_statistics(predictions[i], agrees[i], statistics + i * kNumStatistics);
      }
      run_policy(head, states, statistics, count, probability);
    }
    for (int64_t i = 0; i < count; ++i) {
      const float* z = logits + i * C;
      keep[first + i] = decide_row(
          head,
          decision,
          results,
          row_ids[first + i],
          z,
          predictions[i],
          agrees[i],
          probability[i]);
    }
  }
}

}  // namespace
}  // namespace consistentee::CONSISTENTEE_SIMD
