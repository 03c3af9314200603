// Exit decisions, and the means they read.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "checks.h"

namespace consistentee {

// Logits and decisions; the scores are compared with the specification in Python.
template <typename scalar_t>
void test_exit_rows(
    const Kernels<scalar_t>& kernels,
    StateActivation activation,
    int64_t threshold_stride,
    bool multi_label) {
  for (const int64_t size : {1, 7, 32, 100}) {
    for (const int64_t classes : {1, 2, 5}) {
      const int64_t rows = 6, policy = 3, features = size + kNumStatistics;
      const auto classifier = draw<float>(classes * size), classifier_bias = draw<float>(classes);
      const auto dense = draw<float>(policy * features), dense_bias = draw<float>(policy);
      const auto score = draw<float>(policy), score_bias = draw<float>(1);
      const auto pooled = draw<scalar_t>(rows * size);
      const ExitHead head{
          classifier.data(),
          classifier_bias.data(),
          dense.data(),
          dense_bias.data(),
          score.data(),
          score_bias.data(),
          size,
          classes,
          policy,
          PolicyInput::kBoth,
          activation,
          multi_label};
      std::vector<float> thresholds{0.5f, 0.1f, 0.3f, 0.6f, 0.7f, 0.9f};
      if (threshold_stride == 0) thresholds = {0.5f};
      const std::vector<int64_t> ids{5, 0, 1, 2, 3, 4};
      const auto run = [&](bool last,
                           std::vector<float>& logits,
                           std::vector<float>& scores,
                           std::vector<int64_t>& layers) {
        const ExitDecision decision{
            Criterion::kPolicy, thresholds.data(), threshold_stride, 1, 3, last};
        std::vector<int32_t> labels(rows, -1), streaks(rows);
        std::vector<uint8_t> keep(rows, 2);
        std::vector<float> scratch(exit_scratch(head));
        kernels.exit_rows(
            head,
            decision,
            pooled.data(),
            ids.data(),
            0,
            rows,
            {logits.data(), layers.data(), scores.data(), labels.data(), streaks.data()},
            keep.data(),
            scratch.data());
        for (int64_t row = 0; row < rows; ++row) {
          expect_near(layers[ids[row]], keep[row] ? 0 : 1, 0, "exit_rows");
        }
      };

      std::vector<float> all_logits(rows * classes), all_scores(rows);
      std::vector<int64_t> all_layers(rows);
      run(true, all_logits, all_scores, all_layers);
      for (int64_t row = 0; row < rows; ++row) {
        expect_near(all_layers[ids[row]], 1, 0, "the last layer keeps none");
        for (int64_t c = 0; c < classes; ++c) {
          double expected = classifier_bias[c];
          for (int64_t h = 0; h < size; ++h) {
            const double x = to_float(pooled[row * size + h]);
            const double state = activation == StateActivation::kRelu   ? std::max(x, 0.0)
                                 : activation == StateActivation::kTanh ? std::tanh(x)
                                                                        : x;
            expected += classifier[c * size + h] * state;
          }
          expect_near(all_logits[ids[row] * classes + c], expected, 1e-4, "logits");
        }
      }

      std::vector<float> logits(rows * classes), scores(rows);
      std::vector<int64_t> layers(rows);
      run(false, logits, scores, layers);
      for (int64_t id = 0; id < rows; ++id) {
        const bool leaves = all_scores[id] > thresholds[id * threshold_stride];
        expect_near(layers[id], leaves ? 1 : 0, 0, "above its threshold a row leaves");
        expect_near(scores[id], leaves ? all_scores[id] : 0.0f, 0, "score");
      }
    }
  }
}

template <typename scalar_t>
void test_means(const Kernels<scalar_t>& kernels, double tolerance) {
  const int64_t size = 19;
  const std::vector<int32_t> offsets{0, 1, 4, 9};
  const auto hidden = draw<scalar_t>(9 * size);
  std::vector<scalar_t> out(3 * size);
  std::vector<float> scratch(size);
  kernels.mean_rows(hidden.data(), offsets.data(), size, 0, 3, out.data(), scratch.data());
  for (int64_t row = 0; row < 3; ++row) {
    for (int64_t h = 0; h < size; ++h) {
      double mean = 0.0;
      for (int64_t t = offsets[row]; t < offsets[row + 1]; ++t) {
        mean += double(to_float(hidden[t * size + h])) / (offsets[row + 1] - offsets[row]);
      }
      expect_near(to_float(out[row * size + h]), mean, tolerance, "mean_rows");
    }
  }
}

}  // namespace consistentee
