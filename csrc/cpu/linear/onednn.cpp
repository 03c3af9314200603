// A product by oneDNN, of weights in float32 or bfloat16, with bias and activation.

#include "cpu/linear/linear.h"

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

}  // namespace

Tensor float_product(
    const Tensor& x,
    const Tensor& weight,
    const std::optional<Tensor>& bias,
    Activation activation) {
  if (!aoti_torch_cpu__linear_pointwise) fail("linear: expected a torch with oneDNN");
  AtenTensorHandle bias_handle = bias ? bias->get() : nullptr, result = nullptr;
  const auto [function, variant] = kNames[static_cast<int>(activation)];
  const char* algorithm = variant;
  TORCH_ERROR_CODE_CHECK(aoti_torch_cpu__linear_pointwise(
      with_more_rows(x).get(),
      weight.get(),
      bias ? &bias_handle : nullptr,
      function,
      nullptr,
      0,
      &algorithm,
      &result));
  return first_rows(Tensor(result), x.size(0));
}

}  // namespace consistentee
