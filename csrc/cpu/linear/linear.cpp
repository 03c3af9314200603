// linear: a product, whole or in parts.

#include "cpu/linear/linear.h"

#include <algorithm>
#include <utility>

#include "cpu/batch.h"

namespace consistentee {
namespace {

Activation activation_of(const std::string& name) {
  constexpr const char* kNames[] = {"none", "gelu", "gelu_pytorch_tanh", "relu", "silu", "tanh"};
  for (int i = 0; i < 6; ++i) {
    if (name == kNames[i]) return static_cast<Activation>(i);
  }
  fail("activation: expected none, gelu, gelu_pytorch_tanh, relu, silu or tanh, got " + name);
}

}  // namespace

void Operand::write(int64_t begin, int64_t end) const {
  if (!integers) return;
  dispatch(rows, "x", [&](const auto& kernels, auto element) {
    using scalar_t = decltype(element);
    kernels.quantize_tokens(
        data<scalar_t>(rows),
        rows.size(1),
        levels,
        mutable_data<uint8_t>(*integers),
        mutable_data<TokenScale>(*scales),
        begin,
        end);
  });
}

void Product::finish(int64_t begin, int64_t end) const {
  if (!scales) return;
  dispatch(rows, "x", [&](const auto& kernels, auto element) {
    using scalar_t = decltype(element);
    kernels.finish_tokens(
        mutable_data<scalar_t>(rows), data<TokenScale>(*scales), output, rows.size(1), begin, end);
  });
}

Tensor Product::finished() const {
  if (scales) by_rows(rows.size(0), rows.size(1), [&](int64_t b, int64_t e) { finish(b, e); });
  return rows;
}

PrepackedLinear::PrepackedLinear(
    Tensor weight,
    std::optional<Tensor> bias,
    const std::string& activation,
    std::optional<Int8> int8)
    : weight_(std::move(weight)),
      bias_(std::move(bias)),
      activation_(activation_of(activation)),
      int8_(std::move(int8)) {
  int32_t layout = 0;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_layout(weight_.get(), &layout));
  prepacked_ = layout == aoti_torch_layout__mkldnn();
  if (!int8_) return;
  const int64_t size = int8_->scale.size(0);
  if (weight_.dim() != 2 || weight_.size(1) != size) fail("scale: expected one for each row");
  if (!bias_) bias_ = torch::stable::new_zeros(int8_->scale, {size});
  check_tensor(*bias_, "bias", ScalarType::Float, {size});
  // Ones are the integers behind the zero point.
  const Tensor ones =
      torch::stable::new_empty(int8_->scale, {1, weight_.size(0)}, ScalarType::Byte);
  std::fill_n(
      mutable_data<uint8_t>(ones), weight_.size(0), static_cast<uint8_t>(int8_->levels + 2));
  sums_ = int8_product(ones, weight_, *int8_, ScalarType::Float);
}

Tensor PrepackedLinear::operator()(const Tensor& x) const { return product(read(x)).finished(); }

Operand PrepackedLinear::operand(const Tensor& rows) const {
  if (!int8_) return Operand::of(rows);
  if (rows.dim() != 2 || !rows.is_contiguous()) fail("x: expected contiguous rows [T, I]");
  const int64_t tokens = rows.size(0);
  return {
      rows,
      new_tokens(rows, tokens, rows.size(1), ScalarType::Byte),
      torch::stable::new_empty(rows, {tokens, 2}, ScalarType::Float),
      int8_->levels};
}

Operand PrepackedLinear::read(const Tensor& rows) const {
  Operand out = operand(rows);
  if (int8_) by_rows(rows.size(0), rows.size(1), [&](int64_t b, int64_t e) { out.write(b, e); });
  return out;
}

Operand PrepackedLinear::read(const Product& x) const {
  if (!int8_ || !x.scales) return read(x.finished());
  const Operand out = operand(x.rows);
  const int64_t size = x.rows.size(1);
  dispatch(x.rows, "x", [&](const auto& kernels, auto element) {
    using scalar_t = decltype(element);
    const scalar_t* rows = data<scalar_t>(x.rows);
    const TokenScale* scales = data<TokenScale>(*x.scales);
    uint8_t* integers = mutable_data<uint8_t>(*out.integers);
    TokenScale* out_scales = mutable_data<TokenScale>(*out.scales);
    by_rows(x.rows.size(0), size, [&](int64_t begin, int64_t end, float* scratch) {
      kernels.requantize_tokens(
          rows, scales, x.output, size, out.levels, integers, out_scales, begin, end, scratch);
    });
  });
  return out;
}

Product PrepackedLinear::product(const Operand& x) const {
  if (int8_) {
    if (!x.integers) fail("x: expected integers of 8 bits");
    Tensor rows = int8_product(*x.integers, weight_, *int8_, x.rows.scalar_type());
    return {std::move(rows), x.scales, {data<float>(*sums_), data<float>(*bias_), activation_}};
  }
  if (!prepacked_ && x.rows.size(0) <= kFewRows) {
    return Product::of(few_rows_product(x.rows, weight_, bias_, activation_));
  }
  return Product::of(float_product(x.rows, weight_, bias_, activation_));
}

namespace {

Tensor linear(
    const Tensor& x,
    const Tensor& weight,
    const std::optional<Tensor>& bias,
    const std::string& activation,
    const std::optional<Tensor>& scale,
    int64_t levels) {
  if (x.dim() != 2) fail("x: expected a tensor of shape [T, I]");
  return PrepackedLinear(weight, bias, activation, optional_int8(scale, levels))(x);
}

}  // namespace
}  // namespace consistentee

STABLE_TORCH_LIBRARY_IMPL(consistentee, CPU, m) {
  m.impl("linear", TORCH_BOX(&consistentee::linear));
}

// Prepacked weights are of torch's MKLDNN layout: a call that has one is dispatched by that key.
STABLE_TORCH_LIBRARY_IMPL(consistentee, MkldnnCPU, m) {
  m.impl("linear", TORCH_BOX(&consistentee::linear));
}
