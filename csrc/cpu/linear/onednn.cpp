// linear: a matrix product, by oneDNN but for few rows.

#include "cpu/linear/linear.h"

#include <cstring>
#include <utility>

// The interface through which torch's ahead-of-time compiled models call oneDNN; a torch built
// without oneDNN lacks it.
extern "C" __attribute__((weak)) AOTITorchError aoti_torch_cpu__linear_pointwise(
    AtenTensorHandle x,
    AtenTensorHandle weight,
    AtenTensorHandle* bias,
    const char* activation,
    const double** scalars,
    int64_t scalars_length,
    const char** algorithm,
    AtenTensorHandle* result);

namespace consistentee {
namespace {

struct Name {
  const char* function;
  const char* variant;
};

// oneDNN's names of the activations, in their order.
constexpr Name kNames[] = {
    {"none", ""}, {"gelu", "none"}, {"gelu", "tanh"}, {"relu", ""}, {"swish", ""}, {"tanh", ""}};

Activation activation_of(const std::string& name) {
  constexpr const char* kActivations[] = {
      "none", "gelu", "gelu_pytorch_tanh", "relu", "silu", "tanh"};
  for (int i = 0; i < 6; ++i) {
    if (name == kActivations[i]) return static_cast<Activation>(i);
  }
  fail("activation: expected none, gelu, gelu_pytorch_tanh, relu, silu or tanh, got " + name);
}

// `rows` rounded up, from 128 rows on by at most 6% and seldom by more than 2%.
//
// oneDNN generates code for each number of rows it meets, in 0.1 to 6 ms, and keeps the last 1,024
// products. In a packed batch that loses rows the number is new at nearly every layer. Of few rows
// there are few numbers, and each row is a larger part of the time.
int64_t rows_computed(int64_t rows) {
  const int64_t step = rows < 64 ? 1 : rows < 128 ? 2 : rows < 512 ? 8 : rows < 1024 ? 16 : 32;
  return (rows + step - 1) / step * step;
}

// The rows of x [T, I] and those behind them up to a round number, if memory has them.
Tensor with_more_rows(const Tensor& x) {
  const int64_t tokens = x.size(0), size = x.size(1), rows = rows_computed(tokens);
  if (rows == tokens || !x.is_contiguous()) return x;
  int64_t bytes = 0;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_storage_size(x.get(), &bytes));
  const int64_t offset = x.storage_offset();
  if ((offset + rows * size) * static_cast<int64_t>(x.element_size()) > bytes) return x;
  const int64_t sizes[] = {rows, size}, strides[] = {size, 1};
  AtenTensorHandle more = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch__reinterpret_tensor(x.get(), 2, sizes, strides, offset, &more));
  return Tensor(more);
}

}  // namespace

PrepackedLinear::PrepackedLinear(
    Tensor weight, std::optional<Tensor> bias, const std::string& activation)
    : weight_(std::move(weight)), bias_(std::move(bias)), activation_(activation_of(activation)) {
  int32_t layout = 0;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_layout(weight_.get(), &layout));
  prepacked_ = layout == aoti_torch_layout__mkldnn();
}

Tensor PrepackedLinear::operator()(const Tensor& x) const {
  if (!prepacked_ && x.size(0) <= kFewRows) {
    return few_rows_product(x, weight_, bias_, activation_);
  }
  if (!aoti_torch_cpu__linear_pointwise) fail("linear: expected a torch with oneDNN");
  const auto& [function, variant] = kNames[static_cast<int>(activation_)];
  AtenTensorHandle bias_handle = bias_ ? bias_->get() : nullptr, result = nullptr;
  const char* algorithm = variant;
  TORCH_ERROR_CODE_CHECK(aoti_torch_cpu__linear_pointwise(
      with_more_rows(x).get(),
      weight_.get(),
      bias_ ? &bias_handle : nullptr,
      function,
      nullptr,
      0,
      &algorithm,
      &result));
  return first_rows(Tensor(result), x.size(0));
}

Tensor new_tokens(const Tensor& like, int64_t tokens, int64_t size) {
  const int64_t rows = rows_computed(tokens);
  Tensor out = torch::stable::new_empty(like, {rows, size});
  const size_t row_bytes = size * out.element_size();
  char* behind = static_cast<char*>(out.mutable_data_ptr()) + tokens * row_bytes;
  if (rows > tokens) std::memset(behind, 0, (rows - tokens) * row_bytes);
  return first_rows(out, tokens);
}

Tensor first_rows(const Tensor& tensor, int64_t tokens) {
  Tensor all = tensor;
  return all.size(0) == tokens ? all : torch::stable::narrow(all, 0, 0, tokens);
}

namespace {

Tensor linear(
    const Tensor& x,
    const Tensor& weight,
    const std::optional<Tensor>& bias,
    const std::string& activation) {
  if (x.dim() != 2) fail("x: expected a tensor of shape [T, I]");
  return PrepackedLinear(weight, bias, activation)(x);
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
