// mean_pool, and the other ways to one vector a row: its first token, its last one, its two texts.

#include <algorithm>
#include <cstring>
#include <vector>

#include "cpu/exit/exit.h"
#include "cpu/linear/linear.h"

namespace consistentee {

Tensor mean_pool(const Tensor& hidden, const Tensor& cu_seqlens) {
  const Batch batch = check_batch(hidden, cu_seqlens);
  Tensor out = new_tokens(hidden, batch.rows, batch.hidden_size);
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

Tensor segment_offsets(
    const Tensor& cu_seqlens, const Tensor& row_ids, const Tensor& first_lengths) {
  const int64_t rows = row_ids.numel();
  const int32_t* begins = data<int32_t>(cu_seqlens);
  const int64_t* ids = data<int64_t>(row_ids);
  const int32_t* firsts = data<int32_t>(first_lengths);
  Tensor out = torch::stable::new_empty(cu_seqlens, {2 * rows + 1});
  int32_t* offsets = mutable_data<int32_t>(out);
  for (int64_t row = 0; row < rows; ++row) {
    const int32_t length = begins[row + 1] - begins[row];
    offsets[2 * row] = begins[row];
    offsets[2 * row + 1] = begins[row] + std::clamp(firsts[ids[row]], 0, length);
  }
  offsets[2 * rows] = begins[rows];
  return out;
}

Tensor compare_texts(const Tensor& texts, const Tensor& offsets) {
  const int64_t rows = texts.size(0) / 2, size = texts.size(1);
  Tensor out = new_tokens(texts, rows, 4 * size);
  dispatch(texts, "texts", [&](const auto& kernels, auto element) {
    using scalar_t = decltype(element);
    kernels.compare_rows(
        data<scalar_t>(texts), data<int32_t>(offsets), size, 0, rows, mutable_data<scalar_t>(out));
  });
  return out;
}

Tensor one_token(const Batch& batch, const Tensor& hidden, bool last) {
  Tensor out = new_tokens(hidden, batch.rows, batch.hidden_size);
  const size_t bytes = batch.hidden_size * hidden.element_size();
  const char* source = static_cast<const char*>(hidden.const_data_ptr());
  char* target = static_cast<char*>(out.mutable_data_ptr());
  for (int64_t row = 0; row < batch.rows; ++row) {
    if (batch.cu_seqlens[row] == batch.cu_seqlens[row + 1]) {
      fail("cu_seqlens: expected at least one token a row");
    }
    const int64_t token = last ? batch.cu_seqlens[row + 1] - 1 : batch.cu_seqlens[row];
    std::memcpy(target + row * bytes, source + token * bytes, bytes);
  }
  return out;
}

}  // namespace consistentee

STABLE_TORCH_LIBRARY_IMPL(consistentee, CPU, m) {
  m.impl("mean_pool", TORCH_BOX(&consistentee::mean_pool));
}
