// A block: attention and MLP, each added to its input, with a norm behind the sum or before it.

#include <numeric>

#include "cpu/batch.h"
#include "cpu/exit/exit.h"
#include "cpu/layer/layer.h"

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

std::pair<Tensor, Tensor> Block::operator()(const Tensor& hidden, const Tensor& cu_seqlens) const {
  const int64_t size = hidden.size(1), heads = attention.num_heads;
  const Tensor source = norm_first ? normed(hidden, attention_norm) : hidden;
  Tensor residual = hidden, out_offsets = cu_seqlens, context;
  if (attention.key_value) {
    const Batch rows = check_batch(hidden, cu_seqlens);
    const Tensor product = (*attention.key_value)(source);
    residual = first_tokens(rows, hidden);
    const Tensor first = norm_first ? first_tokens(rows, source) : residual;
    out_offsets = one_token_a_row(cu_seqlens);
    const Tensor key = part(product, 0, size), value = part(product, 1, size);
    context = attend(attention.query(first), key, value, out_offsets, cu_seqlens, heads);
  } else {
    const Tensor product = attention.query(source);
    const Tensor query = part(product, 0, size);
    const Tensor key = part(product, 1, size), value = part(product, 2, size);
    context = attend(query, key, value, cu_seqlens, cu_seqlens, heads);
  }
  const Tensor attended = attention.out(context);
  if (norm_first) {
    add(attended, residual);
    const Tensor out = mlp.down(mlp.up(normed(attended, mlp_norm)));
    add(out, attended);
    return {out, out_offsets};
  }
  add_norm(attended, residual, attention_norm);
  const Tensor out = mlp.down(mlp.up(attended));
  add_norm(out, attended, mlp_norm);
  return {out, out_offsets};
}

}  // namespace consistentee
