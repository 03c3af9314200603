// A block: attention and MLP, each added to its input, with norms behind the sums or before them.

#include <numeric>

#include "cpu/batch.h"
#include "cpu/exit/exit.h"
#include "cpu/layer/layer.h"

namespace consistentee {
namespace {

// Columns [first, first + size) of a product for several matrices.
Tensor part(const Tensor& product, int64_t first, int64_t size) {
  Tensor all = product;
  return torch::stable::narrow(all, 1, first, size);
}

// Offsets [B+1] of B rows of one token.
Tensor one_token_a_row(const Tensor& cu_seqlens) {
  Tensor out = torch::stable::new_empty(cu_seqlens, {cu_seqlens.size(0)});
  int32_t* offsets = mutable_data<int32_t>(out);
  std::iota(offsets, offsets + cu_seqlens.size(0), 0);
  return out;
}

}  // namespace

Tensor Mlp::operator()(const Tensor& x) const {
  const Tensor inner = up(x);
  if (gate) multiply(inner, (*gate)(x));
  return down(inner);
}

Tensor Block::behind_attention(Tensor attended, const Tensor& residual) const {
  if (attention_out_norm) attended = normed(attended, *attention_out_norm);
  add(attended, residual);
  Tensor out = mlp(normed(attended, mlp_norm));
  if (mlp_out_norm) out = normed(out, *mlp_out_norm);
  add(out, attended);
  return out;
}

std::pair<Tensor, Tensor> Block::operator()(const Tensor& hidden, const Tensor& cu_seqlens) const {
  const Form& form = attention.form;
  const int64_t heads = attention.num_heads, size = heads * attention.head_size;
  const int64_t of_keys = form.num_kv_heads * attention.head_size;
  const bool normed_first = norm_first && attention_norm;
  const Tensor source = normed_first ? normed(hidden, *attention_norm) : hidden;
  Tensor residual = hidden, out_offsets = cu_seqlens, context;
  if (attention.key_value) {
    const Batch rows = check_batch(hidden, cu_seqlens);
    const Tensor product = (*attention.key_value)(source);
    const bool last = form.last_queries;
    residual = one_token(rows, hidden, last);
    const Tensor one = normed_first ? one_token(rows, source, last) : residual;
    out_offsets = one_token_a_row(cu_seqlens);
    const Tensor key = part(product, 0, of_keys), value = part(product, of_keys, of_keys);
    context = attend(attention.query(one), key, value, out_offsets, cu_seqlens, heads, form);
  } else {
    const Tensor product = attention.query(source);
    const Tensor query = part(product, 0, size), key = part(product, size, of_keys);
    const Tensor value = part(product, size + of_keys, of_keys);
    context = attend(query, key, value, cu_seqlens, cu_seqlens, heads, form);
  }
  const Tensor attended = attention.out(context);
  if (norm_first) return {behind_attention(attended, residual), out_offsets};
  add_norm(attended, residual, *attention_norm);
  const Tensor out = mlp(attended);
  add_norm(out, attended, mlp_norm);
  return {out, out_offsets};
}

}  // namespace consistentee
