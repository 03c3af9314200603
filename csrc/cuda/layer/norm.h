// What the ops with a layer norm share.
#pragma once

#include <algorithm>

#include "cuda/launch.h"
#include "kernels/cuda/norm.cuh"

namespace consistentee {

// Warps of a block, each with H floats of shared memory.
inline int norm_warps(int64_t hidden_size) {
  const int64_t fit = (kSharedMemory - 64) / std::max<int64_t>(1, 4 * hidden_size);
  if (fit < 1) fail("hidden: expected a hidden size of at most 12,272");
  return static_cast<int>(std::min<int64_t>(kNormWarps, fit));
}

inline void check_device_norm(
    const Tensor& hidden, const Tensor& residual, const Tensor& weight, const Tensor& bias) {
  check_norm(hidden, residual, weight, bias);
  check_device(hidden, {&residual, &weight, &bias}, "residual, weight, bias");
}

template <typename scalar_t>
AddNorm<scalar_t> norm_of(
    const Tensor& hidden,
    const Tensor& residual,
    const Tensor& weight,
    const Tensor& bias,
    double eps) {
  return {
      mutable_data<scalar_t>(hidden),
      data<scalar_t>(residual),
      data<scalar_t>(weight),
      data<scalar_t>(bias),
      hidden.size(1),
      static_cast<float>(eps)};
}

}  // namespace consistentee
