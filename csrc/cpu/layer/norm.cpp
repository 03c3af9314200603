// add_norm_: layer normalisation of a sum, in one pass over the tokens.

#include <vector>

#include "cpu/batch.h"
#include "cpu/layer/layer.h"

namespace consistentee {

void add_norm(const Tensor& hidden, const Tensor& residual, const Norm& norm) {
  check_norm(hidden, residual, norm.weight, norm.bias);
  const int64_t tokens = hidden.size(0), size = hidden.size(1);
  dispatch(hidden, "hidden", [&](const auto& kernels, auto element) {
    using scalar_t = decltype(element);
    const auto weights = layer_norm<scalar_t>(norm.weight, norm.bias, size, norm.eps);
    torch::stable::parallel_for(0, tokens, norm_grain(size), [&](int64_t begin, int64_t end) {
      std::vector<float> scratch(size);
      scalar_t* target = mutable_data<scalar_t>(hidden);
      const scalar_t* source = data<scalar_t>(residual);
      kernels.add_norm_tokens(target, source, weights, begin, end, scratch.data());
    });
  });
}

namespace {

void add_norm_(
    const Tensor& hidden,
    const Tensor& residual,
    const Tensor& weight,
    const Tensor& bias,
    double eps) {
  add_norm(hidden, residual, {weight, bias, eps});
}

}  // namespace
}  // namespace consistentee

STABLE_TORCH_LIBRARY_IMPL(consistentee, CPU, m) {
  m.impl("add_norm_", TORCH_BOX(&consistentee::add_norm_));
}
