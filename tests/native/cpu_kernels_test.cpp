// The CPU kernels on raw memory, of every instruction set this machine has, beside plain loops in
// double precision. Buffers have exactly the size the kernels are promised: under AddressSanitizer
// one element too far is an error. `make sanitize` builds and runs it.

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <vector>

#include "cpu/simd.h"
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

// The tables of a form: they end where rows of `longest` tokens reach.
struct Tables {
  std::vector<float> cos, sin, bias, relative_keys, relative_queries, query_norm, key_norm;
  std::vector<int32_t> buckets;
  AttentionForm form;
};

Tables plain_form(int64_t size) {
  Tables tables;
  tables.form = AttentionForm{};
  tables.form.scale = 1.0f / std::sqrt(static_cast<float>(size));
  tables.form.low = -kFar;
  tables.form.high = kFar;
  return tables;
}

// All that a form may have at once, the window left out or not.
Tables full_form(int64_t size, int64_t longest, int64_t low, int64_t high) {
  Tables tables = plain_form(size);
  AttentionForm& form = tables.form;
  const int64_t half = size / 2, distances = 2 * longest - 1, buckets = 32;
  tables.cos = draw<float>(longest * half);
  tables.sin = draw<float>(longest * half);
  tables.bias = draw<float>(distances);
  tables.relative_keys = draw<float>(buckets * size);
  tables.relative_queries = draw<float>(buckets * size);
  tables.query_norm = draw<float>(size);
  tables.key_norm = draw<float>(size);
  for (int64_t d = 1 - longest; d < longest; ++d) {
    tables.buckets.push_back(static_cast<int32_t>(std::clamp<int64_t>(d + 12, 0, 23)));
  }
  form.low = low;
  form.high = high;
  form.cos = tables.cos.data();
  form.sin = tables.sin.data();
  form.rotated = 2 * half;
  form.bias = tables.bias.data() + longest - 1;
  form.relative_keys = tables.relative_keys.data();
  form.relative_queries = tables.relative_queries.data();
  form.buckets = tables.buckets.data() + longest - 1;
  form.num_buckets = buckets;
  form.query_norm = tables.query_norm.data();
  form.key_norm = tables.key_norm.data();
  form.query_eps = form.key_eps = 1e-5f;
  return tables;
}

// A head of a token as the form has it at a place.
template <typename scalar_t>
std::vector<double> prepared(
    const AttentionForm& form, const float* norm, int64_t place, int64_t size, const scalar_t* x) {
  std::vector<double> out(size);
  double squares = 0.0;
  for (int64_t i = 0; i < size; ++i) {
    out[i] = to_float(x[i]);
    squares += out[i] * out[i] / size;
  }
  for (int64_t i = 0; norm && i < size; ++i) out[i] *= norm[i] / std::sqrt(squares + 1e-5);
  const int64_t half = form.rotated / 2;
  for (int64_t i = 0; i < half; ++i) {
    const double a = out[i], b = out[half + i];
    const double cos = form.cos[place * half + i], sin = form.sin[place * half + i];
    out[i] = a * cos - b * sin;
    out[half + i] = b * cos + a * sin;
  }
  return out;
}

// Attention of one head that lies in the middle of wider rows.
template <typename scalar_t>
void check_attention(
    const CpuKernels& table,
    const Kernels<scalar_t>& kernels,
    AttentionForm form,
    int64_t size,
    int64_t queries,
    int64_t keys,
    double tolerance) {
  form.first_place = keys - queries;
  const int64_t stride = size + 3;
  // The last token ends with its head: nothing may be read behind it.
  const auto query = draw<scalar_t>((queries - 1) * stride + size);
  const auto key = draw<scalar_t>((keys - 1) * stride + size);
  const auto value = draw<scalar_t>((keys - 1) * stride + size);
  std::vector<scalar_t> out(queries * size);
  std::vector<float> scratch(table.attention_scratch(queries, size, form.buckets != nullptr));
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
       size,
       form},
      out.data(),
      scratch.data());
  for (int64_t q = 0; q < queries; ++q) {
    const int64_t place = form.first_place + q;
    const auto left = prepared(form, form.query_norm, place, size, query.data() + q * stride);
    std::vector<double> scores(keys);
    double highest = -1e300, total = 0.0;
    for (int64_t k = 0; k < keys; ++k) {
      const auto right = prepared(form, form.key_norm, k, size, key.data() + k * stride);
      const int64_t distance = place - k;
      double score = 0.0;
      for (int64_t i = 0; i < size; ++i) {
        score += left[i] * right[i];
        if (form.buckets) {
          const int32_t bucket = form.buckets[distance];
          score += left[i] * form.relative_keys[bucket * size + i];
          score += right[i] * form.relative_queries[i * form.num_buckets + bucket];
        }
      }
      score *= form.scale;
      if (form.bias) score += form.bias[distance];
      scores[k] = distance < form.low || distance > form.high ? -1e300 : score;
      highest = std::max(highest, scores[k]);
    }
    for (double& score : scores) total += score = std::exp(score - highest);
    for (int64_t i = 0; i < size; ++i) {
      double expected = 0.0;
      for (int64_t k = 0; k < keys; ++k) {
        expected += scores[k] / total * to_float(value[k * stride + i]);
      }
      expect_near(to_float(out[q * size + i]), expected, tolerance, "attend_head");
    }
  }
}

template <typename scalar_t>
void test_attention(const CpuKernels& table, const Kernels<scalar_t>& kernels, double tolerance) {
  for (const int64_t size : {1, 5, 16, 32, 64, 80, 128}) {
    for (const auto& [queries, keys] :
         {std::pair<int64_t, int64_t>{1, 1}, {1, 70}, {7, 7}, {33, 33}, {65, 65}, {130, 130}}) {
      const Tables plain = plain_form(size);
      check_attention(table, kernels, plain.form, size, queries, keys, tolerance);
      for (const auto& [low, high] :
           {std::pair<int64_t, int64_t>{-kFar, kFar}, {0, kFar}, {-5, 5}, {0, 40}, {-70, 3}}) {
        const Tables full = full_form(size, keys, low, high);
        check_attention(table, kernels, full.form, size, queries, keys, 4 * tolerance);
      }
    }
  }
}

template <typename scalar_t>
void test_places(const Kernels<scalar_t>& kernels, double tolerance) {
  for (const int64_t size : {2, 16, 34, 64}) {
    const int64_t heads = 3, place = 6;
    const Tables tables = full_form(size, 7, -kFar, kFar);
    const auto x = draw<scalar_t>(heads * size);
    std::vector<float> scratch(size);
    for (const float* norm : {tables.form.key_norm, static_cast<const float*>(nullptr)}) {
      auto out = x;  // in place
      kernels.place_heads(
          out.data(), tables.form, norm, 1e-5f, place, heads, size, out.data(), scratch.data());
      for (int64_t head = 0; head < heads; ++head) {
        const auto expected = prepared(tables.form, norm, place, size, x.data() + head * size);
        for (int64_t i = 0; i < size; ++i) {
          const double bound = tolerance * (1 + std::abs(expected[i]));
          expect_near(to_float(out[head * size + i]), expected[i], bound, "place_heads");
        }
      }
    }
  }
}

double activated(Activation activation, double x) {
  switch (activation) {
    case Activation::kNone: return x;
    case Activation::kGelu: return x * (0.5 + 0.5 * std::erf(x / std::sqrt(2.0)));
    case Activation::kGeluTanh:
      return 0.5 * x * (1 + std::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
    case Activation::kRelu: return std::max(x, 0.0);
    case Activation::kSilu: return x / (1 + std::exp(-x));
    case Activation::kTanh: return std::tanh(x);
  }
  return NAN;
}

// Rows as integers and back: no number moves by more than half a step, and both ends stay.
void expect_rounded(
    const std::vector<double>& x,
    const uint8_t* integers,
    TokenScale token,
    int64_t levels,
    double tolerance) {
  const double low = *std::min_element(x.begin(), x.end());
  const double high = *std::max_element(x.begin(), x.end());
  const double step = (high - low) / (2 * levels + 1);
  expect_near(token.scale, step, 1e-6 * (1 + std::abs(high - low)) + tolerance, "scale");
  for (size_t i = 0; i < x.size(); ++i) {
    const double found = token.scale * (integers[i] - levels - 1.0) + token.centre;
    expect_near(found, x[i], 0.501 * step + 2 * tolerance + 1e-6, "quantized");
  }
}

template <typename scalar_t>
void test_integers(const Kernels<scalar_t>& kernels, double tolerance) {
  for (const int64_t size : {1, 7, 16, 33, 384}) {
    for (const int64_t levels : {127, 63}) {
      const int64_t tokens = 4;
      auto x = draw<scalar_t>(tokens * size);
      store(&x[2 * size], INFINITY);
      for (int64_t i = 0; i < size; ++i) store(&x[3 * size + i], -2.0f);
      std::vector<uint8_t> integers(tokens * size, 77);
      std::vector<TokenScale> scales(tokens);
      kernels.quantize_tokens(x.data(), size, levels, integers.data(), scales.data(), 1, tokens);
      expect_near(integers[0], 77, 0, "untouched");
      std::vector<double> row;
      for (int64_t i = 0; i < size; ++i) row.push_back(to_float(x[size + i]));
      expect_rounded(row, integers.data() + size, scales[1], levels, 0);
      expect_near(std::isnan(scales[2].scale) && std::isnan(scales[2].centre), 1, 0, "infinity");
      expect_near(scales[3].scale, 0, 0, "a row of one number");
      expect_near(scales[3].centre, -2, 0, "a row of one number");

      const auto sums = draw<float>(size), bias = draw<float>(size);
      const auto product = draw<scalar_t>(tokens * size);
      const std::vector<TokenScale> given{{0.5f, 0.1f}, {2.0f, -0.3f}, {1.5f, 0.2f}, {0.7f, 1.0f}};
      for (const Activation activation :
           {Activation::kNone,
            Activation::kGelu,
            Activation::kGeluTanh,
            Activation::kRelu,
            Activation::kSilu,
            Activation::kTanh}) {
        const OutputScale output{sums.data(), bias.data(), activation};
        auto finished = product;
        kernels.finish_tokens(finished.data(), given.data(), output, size, 1, tokens);
        std::vector<float> scratch(size);
        kernels.requantize_tokens(
            product.data(),
            given.data(),
            output,
            size,
            levels,
            integers.data(),
            scales.data(),
            1,
            tokens,
            scratch.data());
        for (int64_t token = 0; token < tokens; ++token) {
          std::vector<double> expected;
          for (int64_t i = 0; i < size; ++i) {
            const double g = to_float(product[token * size + i]);
            const double y = given[token].scale * g + given[token].centre * sums[i] + bias[i];
            expected.push_back(token == 0 ? g : activated(activation, y));
            const double bound = tolerance * (1 + std::abs(expected[i]));
            expect_near(to_float(finished[token * size + i]), expected[i], bound, "finish_tokens");
          }
          if (token == 0) continue;
          expect_rounded(expected, integers.data() + token * size, scales[token], levels, 1e-5);
        }
      }
    }
  }
}

template <typename scalar_t>
void test_norms(const Kernels<scalar_t>& kernels, bool rms, double tolerance) {
  for (const int64_t size : {2, 7, 16, 33, 384}) {
    const int64_t tokens = 5, entries = 3;
    const auto weight = draw<scalar_t>(size), bias = draw<scalar_t>(size);
    const LayerNorm<scalar_t> norm{weight.data(), rms ? nullptr : bias.data(), size, 1e-5f};
    std::vector<float> scratch(size);
    const auto expect_normal = [&](const std::vector<double>& x, const scalar_t* found) {
      double mean = 0.0, variance = 0.0;
      for (const double value : x) mean += rms ? 0.0 : value / size;
      for (const double value : x) variance += (value - mean) * (value - mean) / size;
      for (int64_t h = 0; h < size; ++h) {
        const double scaled = (x[h] - mean) / std::sqrt(variance + 1e-5);
        const double expected = scaled * to_float(weight[h]) + (rms ? 0.0 : to_float(bias[h]));
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
    auto multiplied = before;
    kernels.multiply_elements(multiplied.data(), residual.data(), size, tokens * size);
    for (int64_t token = 0; token < tokens; ++token) {
      std::vector<double> source(size);
      for (int64_t h = 0; h < size; ++h) {
        const int64_t at = token * size + h;
        source[h] = to_float(before[at]);
        scalar_t sum = before[at];
        if (token > 0) store(&sum, to_float(before[at]) + to_float(residual[at]));
        expect_near(to_float(added[at]), to_float(sum), 0, "add_elements");
        scalar_t product = before[at];
        if (token > 0) store(&product, to_float(before[at]) * to_float(residual[at]));
        expect_near(to_float(multiplied[at]), to_float(product), 0, "multiply_elements");
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

    // Words alone, and with segments, are not normed without a weight.
    const LayerNorm<scalar_t> none{nullptr, nullptr, size, 0.0f};
    for (const scalar_t* segments : {static_cast<const scalar_t*>(nullptr), types.data()}) {
      const Embeddings<scalar_t> few{
          words.data(), nullptr, segments, ids.data(), nullptr, type_ids.data()};
      kernels.embed_tokens(few, none, out.data(), 0, tokens, scratch.data());
      for (int64_t token = 0; token < tokens; ++token) {
        for (int64_t h = 0; h < size; ++h) {
          float sum = to_float(words[ids[token] * size + h]);
          if (segments) sum += to_float(types[type_ids[token] * size + h]);
          scalar_t expected;
          store(&expected, sum);
          expect_near(to_float(out[token * size + h]), to_float(expected), 0, "embed_tokens");
        }
      }
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

// Whole blocks and what is left of them, of rows, outputs and inputs; each row as it is alone.
template <typename scalar_t>
void test_few_rows(const Kernels<scalar_t>& kernels, double tolerance) {
  for (const int64_t outputs : {1, 32, 39}) {
    for (const int64_t inputs : {1, 16, 45}) {
      const int64_t most = 35, tiles = (outputs + kOutputTile - 1) / kOutputTile;
      const auto x = draw<scalar_t>(most * inputs), weight = draw<scalar_t>(outputs * inputs);
      const auto bias = draw<scalar_t>(outputs);
      std::vector<scalar_t> all(most * outputs);
      for (int64_t rows = most; rows > 0; rows -= rows > 8 ? 11 : 1) {
        std::vector<scalar_t> out(rows * outputs);
        kernels.multiply_few_rows(
            {x.data(),
             rows,
             inputs,
             outputs,
             weight.data(),
             bias.data(),
             Activation::kRelu,
             out.data()},
            0,
            tiles);
        if (rows == most) all = out;
        for (int64_t i = 0; i < rows * outputs; ++i) {
          double sum = to_float(bias[i % outputs]);
          for (int64_t k = 0; k < inputs; ++k) {
            const int64_t row = i / outputs, output = i % outputs;
            sum += double(to_float(x[row * inputs + k])) * to_float(weight[output * inputs + k]);
          }
          expect_near(to_float(out[i]), std::max(sum, 0.0), 8 * tolerance, "multiply_few_rows");
          expect_near(to_float(out[i]), to_float(all[i]), 0, "a row alone");
        }
      }
    }
  }
}

void test_tiles(const TileKernels& kernels) {
  const int64_t inputs = 64, outputs = 64, most = 50;
  const auto x = draw<BFloat16>(most * inputs), weight = draw<BFloat16>(outputs * inputs);
  std::vector<BFloat16> all;
  for (const int64_t rows : {50, 33, 32, 17, 16, 1}) {
    const int64_t groups = (rows + kTileGroup - 1) / kTileGroup;
    std::vector<BFloat16> laid_out(groups * kTileGroup * inputs), out(rows * outputs);
    kernels.lay_out(x.data(), rows, inputs, 0, groups, laid_out.data());
    kernels.multiply(
        {x.data(), rows, inputs, outputs, weight.data(), nullptr, Activation::kNone, out.data()},
        laid_out.data(),
        0,
        outputs / kOutputTile);
    if (rows == most) all = out;
    for (int64_t i = 0; i < rows * outputs; ++i) {
      double sum = 0.0;
      for (int64_t k = 0; k < inputs; ++k) {
        const int64_t row = i / outputs, output = i % outputs;
        sum += double(to_float(x[row * inputs + k])) * to_float(weight[output * inputs + k]);
      }
      expect_near(to_float(out[i]), sum, 0.15, "multiply by tiles");
      expect_near(to_float(out[i]), to_float(all[i]), 0, "a row alone, by tiles");
    }
  }
}

template <typename scalar_t>
void test_all(const CpuKernels& table, const Kernels<scalar_t>& kernels, double tolerance) {
  test_attention(table, kernels, tolerance);
  test_places(kernels, tolerance);
  test_norms(kernels, false, tolerance);
  test_norms(kernels, true, tolerance);
  for (const int64_t threshold_stride : {0, 1}) {
    for (const bool multi_label : {false, true}) {
      test_exit_rows(kernels, StateActivation::kTanh, threshold_stride, multi_label);
      test_exit_rows(kernels, StateActivation::kRelu, threshold_stride, multi_label);
      test_exit_rows(kernels, StateActivation::kNone, threshold_stride, multi_label);
    }
  }
  test_means(kernels, tolerance);
  test_few_rows(kernels, tolerance);
  test_integers(kernels, tolerance);
}

}  // namespace
}  // namespace consistentee

int main() {
  const auto& table = consistentee::cpu_kernels();
  consistentee::test_all(table, table.f32, 1e-4);
  consistentee::test_all(table, table.bf16, 2e-2);
  consistentee::test_all(table, table.f16, 4e-3);
  if (consistentee::has_tiles()) consistentee::test_tiles(table.tiles);
  std::printf("%s kernels: passed\n", table.level);
}
