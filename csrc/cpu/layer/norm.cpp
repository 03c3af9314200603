// add_norm_: layer normalisation of a sum, in one pass over the tokens. And what a block has that
// normalises first: a norm and a sum apart.

#include "cpu/batch.h"
#include "cpu/layer/layer.h"

namespace consistentee {

void add_norm(const Product& hidden, const Tensor& residual, const Norm& norm, const Operand& out) {
  check_norm(hidden.rows, residual, norm.weight, norm.bias);
  const int64_t tokens = out.rows.size(0), size = out.rows.size(1);
  dispatch(out.rows, "hidden", [&](const auto& kernels, auto element) {
    using scalar_t = decltype(element);
    const auto weights = layer_norm<scalar_t>(norm.weight, norm.bias, size, norm.eps);
    scalar_t* target = mutable_data<scalar_t>(out.rows);
    const scalar_t* source = data<scalar_t>(residual);
    by_rows(tokens, size, [&](int64_t begin, int64_t end, float* scratch) {
      hidden.finish(begin, end);
      kernels.add_norm_tokens(target, source, weights, begin, end, scratch);
      out.write(begin, end);
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
    scalar_t* target = mutable_data<scalar_t>(out);
    const scalar_t* source = data<scalar_t>(hidden);
    by_rows(tokens, size, [&](int64_t begin, int64_t end, float* scratch) {
      kernels.norm_tokens(source, weights, target, begin, end, scratch);
    });
  });
  return out;
}

void add(const Tensor& target, const Tensor& source) {
  const int64_t tokens = target.size(0), size = target.size(1);
  check_tensor(source, "source", target.scalar_type(), {tokens, size});
  dispatch(target, "target", [&](const auto& kernels, auto element) {
    using scalar_t = decltype(element);
    const int64_t grain = norm_grain(size) * size;
    torch::stable::parallel_for(0, tokens * size, grain, [&](int64_t begin, int64_t end) {
      kernels.add_elements(mutable_data<scalar_t>(target), data<scalar_t>(source), begin, end);
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
  add_norm(Product::of(hidden), residual, Norm{weight, bias, eps}, Operand::of(hidden));
}

}  // namespace
}  // namespace consistentee

STABLE_TORCH_LIBRARY_IMPL(consistentee, CPU, m) {
  m.impl("add_norm_", TORCH_BOX(&consistentee::add_norm_));
}
