// Norms, sums and embeddings of tokens.
#pragma once

#include <cmath>
#include <vector>

#include "checks.h"

namespace consistentee {

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

}  // namespace consistentee
