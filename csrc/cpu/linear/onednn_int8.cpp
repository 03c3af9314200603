// A product by oneDNN of integers of 8 bits.

#include <algorithm>

#include "cpu/linear/int8_product.h"
#include "cpu/linear/linear.h"

// As aoti_torch_cpu__linear_pointwise: of torch's ahead-of-time compiled models, and not everywhere.
extern "C" __attribute__((weak)) AOTITorchError aoti_torch_cpu__qlinear_pointwise_tensor(
    AtenTensorHandle x,
    AtenTensorHandle scale,
    AtenTensorHandle zero_point,
    AtenTensorHandle weight,
    AtenTensorHandle weight_scales,
    AtenTensorHandle weight_zero_points,
    AtenTensorHandle* bias,
    double output_scale,
    int64_t output_zero_point,
    const int32_t* output_dtype,
    const char* activation,
    const double** scalars,
    int64_t scalars_length,
    const char* algorithm,
    AtenTensorHandle* result);

namespace consistentee {
namespace {

template <typename T>
Tensor filled(const Tensor& like, int64_t size, ScalarType dtype, T value) {
  const Tensor out = torch::stable::new_empty(like, {size}, dtype);
  std::fill_n(mutable_data<T>(out), size, value);
  return out;
}

}  // namespace

std::optional<Int8> optional_int8(const std::optional<Tensor>& scale, int64_t levels) {
  if (!scale) return std::nullopt;
  if (scale->dim() != 1) fail("scale: expected a tensor of shape [O]");
  check_tensor(*scale, "scale", ScalarType::Float, {scale->size(0)});
  if (levels != 127 && levels != 63) fail("levels: expected 127 or 63");
  const int64_t size = scale->size(0);
  return Int8{
      *scale,
      levels,
      filled<float>(*scale, 1, ScalarType::Float, 1.0f),
      filled<int32_t>(*scale, 1, ScalarType::Int, static_cast<int32_t>(levels) + 1),
      filled<int64_t>(*scale, size, ScalarType::Long, 0)};
}

bool has_int8_product() { return aoti_torch_cpu__qlinear_pointwise_tensor != nullptr; }

Tensor int8_product(
    const Tensor& integers, const Tensor& weight, const Int8& int8, ScalarType dtype) {
  if (!has_int8_product()) fail("linear: expected a torch with oneDNN's products of 8 bits");
  const bool narrow = dtype == ScalarType::BFloat16;
  if (!narrow && dtype != ScalarType::Float) fail("x: expected float32 or bfloat16");
  const int32_t code = narrow ? aoti_torch_dtype_bfloat16() : aoti_torch_dtype_float32();
  AtenTensorHandle result = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_cpu__qlinear_pointwise_tensor(
      with_more_rows(integers).get(),
      int8.one.get(),
      int8.zero_point.get(),
      weight.get(),
      int8.scale.get(),
      int8.zeros.get(),
      nullptr,
      1.0,
      0,
      &code,
      "none",
      nullptr,
      0,
      "",
      &result));
  return first_rows(Tensor(result), integers.size(0));
}

}  // namespace consistentee
