#include "cpu/bert_layer.h"

#include <numeric>

namespace consistentee {
namespace {

// Columns [index * size, (index + 1) * size) of a product for several matrices.
Tensor part(const Tensor& product, int64_t index, int64_t size) {
  Tensor all = product;
  return torch::stable::narrow(all, 1, index * size, size);
}

// Offsets [B+1] of B rows of one token.
Tensor one_token_a_row(const Tensor& cu_seqlens) {
  Tensor out = torch::stable::new_empty(cu_seqlens, {cu_seqlens.size(0)});
  int32_t* offsets = mutable_data<int32_t>(out);
  std::iota(offsets, offsets + cu_seqlens.size(0), 0);
  return out;
}

}  // namespace

std::pair<Tensor, Tensor> BertLayer::operator()(
    const Tensor& hidden, const Tensor& cu_seqlens) const {
  const int64_t size = hidden.size(1);
  Tensor residual = hidden, out_offsets = cu_seqlens, context;
  if (key_value) {
    const Tensor product = (*key_value)(hidden);
    residual = first_tokens(check_batch(hidden, cu_seqlens), hidden);
    out_offsets = one_token_a_row(cu_seqlens);
    context = attention(
        query(residual),
        part(product, 0, size),
        part(product, 1, size),
        out_offsets,
        cu_seqlens,
        num_heads);
  } else {
    const Tensor product = query(hidden);
    context = attention(
        part(product, 0, size),
        part(product, 1, size),
        part(product, 2, size),
        cu_seqlens,
        cu_seqlens,
        num_heads);
  }
  const Tensor attended = attention_output(context);
  add_norm_(attended, residual, attention_norm_weight, attention_norm_bias, eps);
  const Tensor out = down(up(attended));
  add_norm_(out, attended, output_norm_weight, output_norm_bias, eps);
  return {out, out_offsets};
}

}  // namespace consistentee
