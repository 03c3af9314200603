// The CPU kernels on raw memory, of every instruction set this machine has, beside plain loops in
// double precision. Buffers have exactly the size the kernels are promised: under AddressSanitizer
// one element too far is an error. `make sanitize` builds and runs it.

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <vector>

#include "kernels/cpu/table.h"

namespace consistentee {
namespace {

std::mt19937 generator(0);

template <typename scalar_t>
std::vector<scalar_t> draw(int64_t count) {
  std::normal_distribution<float> normal;
  std::vector<scalar_t> values(count);
  for (scalar_t& value : values) store(&value, normal(generator));
  return values;
}

void expect_near(double found, double expected, double tolerance, const char* what) {
  if (std::abs(found - expected) <= tolerance) return;
  std::fprintf(stderr, "%s: expected %.9g, got %.9g\n", what, expected, found);
  std::exit(1);
}

// softmax(Q K^T / sqrt(d)) V of one head that lies in the middle of wider rows.
template <typename scalar_t>
void test_attention(const CpuKernels& table, const Kernels<scalar_t>& kernels, double tolerance) {
  for (const int64_t size : {1, 5, 16, 32, 64, 80, 128}) {
    for (const auto& [queries, keys] :
         {std::pair<int64_t, int64_t>{1, 1}, {1, 70}, {7, 7}, {33, 33}, {65, 65}, {130, 130}}) {
      const int64_t stride = size + 3;
      // The last token ends with its head: nothing may be read behind it.
      const auto query = draw<scalar_t>((queries - 1) * stride + size);
      const auto key = draw<scalar_t>((keys - 1) * stride + size);
      const auto value = draw<scalar_t>((keys - 1) * stride + size);
      std::vector<scalar_t> out(queries * size);
      std::vector<float> scratch(table.attention_scratch(queries, size));
      kernels.attend_head(
          {query.data(),
           key.data(),
           value.data(),
           stride,
           stride,
           stride,
           size,
           queries,
           keys,
           size},
          out.data(),
          scratch.data());
      for (int64_t q = 0; q < queries; ++q) {
        std::vector<double> weights(keys);
        double total = 0.0;
        for (int64_t k = 0; k < keys; ++k) {
          double score = 0.0;
          for (int64_t i = 0; i < size; ++i) {
            score += double(to_float(query[q * stride + i])) * to_float(key[k * stride + i]);
          }
          total += weights[k] = std::exp(score / std::sqrt(double(size)));
        }
        for (int64_t i = 0; i < size; ++i) {
          double expected = 0.0;
          for (int64_t k = 0; k < keys; ++k) {
            expected += weights[k] / total * to_float(value[k * stride + i]);
          }
          expect_near(to_float(out[q * size + i]), expected, tolerance, "attend_head");
        }
      }
    }
  }
}

template <typename scalar_t>
void test_norms(const Kernels<scalar_t>& kernels, double tolerance) {
  for (const int64_t size : {2, 7, 16, 33, 384}) {
    const int64_t tokens = 5, entries = 3;
    const auto weight = draw<scalar_t>(size), bias = draw<scalar_t>(size);
    const LayerNorm<scalar_t> norm{weight.data(), bias.data(), size, 1e-5f};
    std::vector<float> scratch(size);
    const auto expect_normal = [&](const std::vector<double>& x, const scalar_t* found) {
      double mean = 0.0, variance = 0.0;
      for (const double value : x) mean += value / size;
      for (const double value : x) variance += (value - mean) * (value - mean) / size;
      for (int64_t h = 0; h < size; ++h) {
        const double scaled = (x[h] - mean) / std::sqrt(variance + 1e-5);
        const double expected = scaled * to_float(weight[h]) + to_float(bias[h]);
        expect_near(to_float(found[h]), expected, tolerance * (1 + std::abs(expected)), "norm");
      }
    };

    const auto residual = draw<scalar_t>(tokens * size), before = draw<scalar_t>(tokens * size);
    auto hidden = before;
    kernels.add_norm_tokens(hidden.data(), residual.data(), norm, 1, tokens, scratch.data());
    for (int64_t token = 0; token < tokens; ++token) {
      std::vector<double> sum(size);
      for (int64_t h = 0; h < size; ++h) {
        const int64_t at = token * size + h;
        sum[h] = double(to_float(before[at])) + to_float(residual[at]);
        if (token == 0) expect_near(to_float(hidden[at]), to_float(before[at]), 0, "untouched");
      }
      if (token > 0) expect_normal(sum, hidden.data() + token * size);
    }

    std::vector<scalar_t> normed(tokens * size);
    kernels.norm_tokens(before.data(), norm, normed.data(), 1, tokens, scratch.data());
    auto added = before;
    kernels.add_elements(added.data(), residual.data(), size, tokens * size);
    for (int64_t token = 0; token < tokens; ++token) {
      std::vector<double> source(size);
      for (int64_t h = 0; h < size; ++h) {
        const int64_t at = token * size + h;
        source[h] = to_float(before[at]);
        scalar_t sum = before[at];
        if (token > 0) store(&sum, to_float(before[at]) + to_float(residual[at]));
        expect_near(to_float(added[at]), to_float(sum), 0, "add_elements");
        if (token == 0) expect_near(to_float(normed[at]), 0, 0, "untouched");
      }
      if (token > 0) expect_normal(source, normed.data() + token * size);
    }

    const auto words = draw<scalar_t>(entries * size), types = draw<scalar_t>(entries * size);
    const auto positions = draw<scalar_t>(entries * size);
    const std::vector<int64_t> ids{2, 0, 1, 1, 2}, type_ids{0, 1, 2, 0, 2}, places{0, 1, 2, 1, 2};
    const Embeddings<scalar_t> tables{
        words.data(), positions.data(), types.data(), ids.data(), places.data(), type_ids.data()};
    std::vector<scalar_t> out(tokens * size);
    kernels.embed_tokens(tables, norm, out.data(), 0, tokens, scratch.data());
    for (int64_t token = 0; token < tokens; ++token) {
      std::vector<double> sum(size);
      for (int64_t h = 0; h < size; ++h) {
        sum[h] = double(to_float(words[ids[token] * size + h])) +
                 to_float(types[type_ids[token] * size + h]) +
                 to_float(positions[places[token] * size + h]);
      }
      expect_normal(sum, out.data() + token * size);
    }
  }
}

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

template <typename scalar_t>
void test_all(const CpuKernels& table, const Kernels<scalar_t>& kernels, double tolerance) {
  test_attention(table, kernels, tolerance);
  test_norms(kernels, tolerance);
  for (const int64_t threshold_stride : {0, 1}) {
    for (const bool multi_label : {false, true}) {
      test_exit_rows(kernels, StateActivation::kTanh, threshold_stride, multi_label);
      test_exit_rows(kernels, StateActivation::kRelu, threshold_stride, multi_label);
      test_exit_rows(kernels, StateActivation::kNone, threshold_stride, multi_label);
    }
  }
  test_means(kernels, tolerance);
}

}  // namespace
}  // namespace consistentee

int main() {
  const auto& table = consistentee::cpu_kernels();
  consistentee::test_all(table, table.f32, 1e-4);
  consistentee::test_all(table, table.bf16, 2e-2);
  consistentee::test_all(table, table.f16, 4e-3);
  std::printf("%s kernels: passed\n", table.level);
}
