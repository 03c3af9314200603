// Numbers at random, and a check that ends the program.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <vector>

#include "kernels/cpu/table.h"

namespace consistentee {

inline std::mt19937 generator(0);

template <typename scalar_t>
std::vector<scalar_t> draw(int64_t count) {
  std::normal_distribution<float> normal;
  std::vector<scalar_t> values(count);
  for (scalar_t& value : values) store(&value, normal(generator));
  return values;
}

inline void expect_near(double found, double expected, double tolerance, const char* what) {
  if (std::abs(found - expected) <= tolerance) return;
  std::fprintf(stderr, "%s: expected %.9g, got %.9g\n", what, expected, found);
  std::exit(1);
}

}  // namespace consistentee
