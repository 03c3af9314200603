// Rows as integers of 8 bits, and what comes of products of them.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "checks.h"

namespace consistentee {

inline double activated(Activation activation, double x) {
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
inline void expect_rounded(
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

}  // namespace consistentee
