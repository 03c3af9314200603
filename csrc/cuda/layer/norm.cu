// add_norm_: layer norm of a sum.

#include "cuda/layer/norm.h"

namespace consistentee {
namespace {

void add_norm_(
    const Tensor& hidden,
    const Tensor& residual,
    const Tensor& weight,
    const Tensor& bias,
    double eps) {
  check_device_norm(hidden, residual, weight, bias);
  const int64_t tokens = hidden.size(0), size = hidden.size(1);
  if (hidden.numel() == 0) return;
  const DeviceGuard guard(hidden.get_device_index());
  const int warps = norm_warps(size);
  dispatch_dtype(hidden, "hidden", [&](auto element) {
    using scalar_t = decltype(element);
    launch(
        add_norm_tokens<scalar_t>,
        dim3(static_cast<unsigned>((tokens + warps - 1) / warps)),
        warps * kWarp,
        4 * warps * size,
        current_stream(hidden),
        norm_of<scalar_t>(hidden, residual, weight, bias, eps),
        tokens);
  });
}

}  // namespace
}  // namespace consistentee

STABLE_TORCH_LIBRARY_IMPL(consistentee, CUDA, m) {
  m.impl("add_norm_", TORCH_BOX(&consistentee::add_norm_));
}
