// Products of few rows.
#pragma once

#include <algorithm>
#include <vector>

#include "checks.h"

namespace consistentee {

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

inline void test_tiles(const TileKernels& kernels) {
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

}  // namespace consistentee
