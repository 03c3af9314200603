// A product of few rows with weights as the model has them, [O, I].

#include "cpu/batch.h"
#include "cpu/linear/linear.h"
#include "cpu/simd.h"

namespace consistentee {
namespace {

template <typename scalar_t>
void multiply(
    const Kernels<scalar_t>& kernels, const RowsProduct<scalar_t>& product, const Tensor&) {
  const int64_t tiles = (product.outputs + kOutputTile - 1) / kOutputTile;
  torch::stable::parallel_for(0, tiles, 1, [&](int64_t begin, int64_t end) {
    kernels.multiply_few_rows(product, begin, end);
  });
}

void multiply(
    const Kernels<BFloat16>& kernels, const RowsProduct<BFloat16>& product, const Tensor& x) {
  const TileKernels& tiles = cpu_kernels().tiles;
  // By the weights alone: what a row gives must not depend on how many there are.
  const bool whole = product.outputs % kOutputTile == 0 && product.inputs % kOutputTile == 0;
  if (!has_tiles() || !whole) return multiply<BFloat16>(kernels, product, x);
  const int64_t groups = (product.rows + kTileGroup - 1) / kTileGroup;
  const Tensor laid_out = torch::stable::new_empty(x, {groups * kTileGroup, product.inputs});
  torch::stable::parallel_for(0, groups, 1, [&](int64_t begin, int64_t end) {
    tiles.lay_out(
        product.x, product.rows, product.inputs, begin, end, mutable_data<BFloat16>(laid_out));
  });
  torch::stable::parallel_for(0, product.outputs / kOutputTile, 1, [&](int64_t begin, int64_t end) {
    tiles.multiply(product, data<BFloat16>(laid_out), begin, end);
  });
}

}  // namespace

Tensor few_rows_product(
    const Tensor& x,
    const Tensor& weight,
    const std::optional<Tensor>& bias,
    Activation activation) {
  const int64_t rows = x.size(0), inputs = x.size(1), outputs = weight.size(0);
  check_tensor(x, "x", weight.scalar_type(), {rows, inputs});
  check_tensor(weight, "weight", weight.scalar_type(), {outputs, inputs});
  if (bias) check_tensor(*bias, "bias", weight.scalar_type(), {outputs});
  const Tensor out = new_tokens(x, rows, outputs);
  dispatch(x, "x", [&](const auto& kernels, auto element) {
    using scalar_t = decltype(element);
    const RowsProduct<scalar_t> product{
        data<scalar_t>(x),
        rows,
        inputs,
        outputs,
        data<scalar_t>(weight),
        bias ? data<scalar_t>(*bias) : nullptr,
        activation,
        mutable_data<scalar_t>(out)};
    multiply(kernels, product, x);
  });
  return out;
}

}  // namespace consistentee
