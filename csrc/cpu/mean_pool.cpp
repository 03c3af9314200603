// mean_pool: one vector a row, the mean of its tokens.

#include <vector>

#include "cpu/batch.h"

namespace consistentee {
namespace {

Tensor mean_pool(const Tensor& hidden, const Tensor& cu_seqlens) {
  const Batch batch = check_batch(hidden, cu_seqlens);
  Tensor out = torch::stable::new_empty(hidden, {batch.rows, batch.hidden_size});
  dispatch(hidden, "hidden", [&](const auto& kernels, auto element) {
    using scalar_t = decltype(element);
    torch::stable::parallel_for(0, batch.rows, kRowBlock, [&](int64_t begin, int64_t end) {
      std::vector<float> scratch(batch.hidden_size);
      kernels.mean_rows(
          data<scalar_t>(hidden),
          batch.cu_seqlens,
          batch.hidden_size,
          begin,
          end,
          mutable_data<scalar_t>(out),
          scratch.data());
    });
  });
  return out;
}

}  // namespace
}  // namespace consistentee

STABLE_TORCH_LIBRARY_IMPL(consistentee, CPU, m) {
  m.impl("mean_pool", TORCH_BOX(&consistentee::mean_pool));
}
