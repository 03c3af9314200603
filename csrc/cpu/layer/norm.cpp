// add_norm_: layer normalisation of a sum, in one pass over the tokens. And what a block has that
// normalises first: a norm and a sum apart.

#include <vector>

#include "cpu/batch.h"
#include "cpu/layer/layer.h"

namespace consistentee {

namespace {

// Calls f with the kernels of a dtype, target, source and ranges of their elements.
template <typename F>
void by_element(const Tensor& target, const Tensor& source, const F& f) {
  check_tensor(source, "source", target.scalar_type(), {target.size(0), target.size(1)});
  const int64_t size = target.size(1), grain = norm_grain(size) * size;
  dispatch(target, "target", [&](const auto& kernels, auto element) {
    using scalar_t = decltype(element);
    torch::stable::parallel_for(0, target.numel(), grain, [&](int64_t begin, int64_t end) {
      f(kernels, mutable_data<scalar_t>(target), data<scalar_t>(source), begin, end);
    });
  });
}

}  // namespace

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

Tensor normed(const Tensor& hidden, const Norm& norm) {
  const Tensor out = torch::stable::empty_like(hidden);
  check_norm(out, hidden, norm.weight, norm.bias);
  const int64_t tokens = hidden.size(0), size = hidden.size(1);
  dispatch(hidden, "hidden", [&](const auto& kernels, auto element) {
    using scalar_t = decltype(element);
    const auto weights = layer_norm<scalar_t>(norm.weight, norm.bias, size, norm.eps);
    torch::stable::parallel_for(0, tokens, norm_grain(size), [&](int64_t begin, int64_t end) {
      std::vector<float> scratch(size);
      const scalar_t* source = data<scalar_t>(hidden);
      kernels.norm_tokens(source, weights, mutable_data<scalar_t>(out), begin, end, scratch.data());
    });
  });
  return out;
}

void add(const Tensor& target, const Tensor& source) {
  by_element(target, source, [](const auto& kernels, auto... arguments) {
    kernels.add_elements(arguments...);
  });
}

void multiply(const Tensor& target, const Tensor& source) {
  by_element(target, source, [](const auto& kernels, auto... arguments) {
    kernels.multiply_elements(arguments...);
  });
}

namespace {

void add_norm_(
    const Tensor& hidden,
    const Tensor& residual,
    const Tensor& weight,
    const Tensor& bias,
    double eps) {
  add_norm(hidden, residual, Norm{weight, bias, eps});
}

}  // namespace
}  // namespace consistentee

STABLE_TORCH_LIBRARY_IMPL(consistentee, CPU, m) {
  m.impl("add_norm_", TORCH_BOX(&consistentee::add_norm_));
}
