// A block: attention and MLP, each added to its input, with norms behind the sums or before them.

#include <numeric>

#include "cpu/batch.h"
#include "cpu/exit/exit.h"
#include "cpu/layer/layer.h"

namespace consistentee {
namespace {

// Offsets [B+1] of B rows of one token.
Tensor one_token_a_row(const Tensor& cu_seqlens) {
  Tensor out = torch::stable::new_empty(cu_seqlens, {cu_seqlens.size(0)});
  int32_t* offsets = mutable_data<int32_t>(out);
  std::iota(offsets, offsets + cu_seqlens.size(0), 0);
  return out;
}

}  // namespace

Product Mlp::operator()(const Operand& x) const {
  const Product inner = up.product(x);
  if (!gate) return down.product(down.read(inner));
  const Product gating = gate->product(x);
  const Operand out = down.operand(inner.rows);
  const int64_t tokens = inner.rows.size(0), size = inner.rows.size(1);
  check_tensor(gating.rows, "gate", inner.rows.scalar_type(), {tokens, size});
  dispatch(inner.rows, "x", [&](const auto& kernels, auto element) {
    using scalar_t = decltype(element);
    scalar_t* target = mutable_data<scalar_t>(inner.rows);
    const scalar_t* source = data<scalar_t>(gating.rows);
    by_rows(tokens, size, [&](int64_t begin, int64_t end) {
      inner.finish(begin, end);
      gating.finish(begin, end);
      kernels.multiply_elements(target, source, begin * size, end * size);
      out.write(begin, end);
    });
  });
  return down.product(out);
}

Tensor Block::behind_attention(Tensor attended, const Tensor& residual) const {
  if (attention_out_norm) attended = normed(attended, *attention_out_norm);
  add(attended, residual);
  Tensor out = mlp(mlp.up.read(normed(attended, mlp_norm))).finished();
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
  Tensor residual = hidden, out_offsets = cu_seqlens;
  std::optional<Operand> context;
  if (attention.key_value) {
    const Batch rows = check_batch(hidden, cu_seqlens);
    const Product others = attention.key_value->product(attention.key_value->read(source));
    const bool last = form.last_queries;
    residual = one_token(rows, hidden, last);
    const Tensor one = normed_first ? one_token(rows, source, last) : residual;
    out_offsets = one_token_a_row(cu_seqlens);
    const Product query = attention.query.product(attention.query.read(one));
    const Columns key{others, 0, of_keys}, value{others, of_keys, of_keys};
    context = attention.out.operand(new_tokens(one, one.size(0), size));
    attend({query, 0, size}, key, value, out_offsets, cu_seqlens, heads, form, *context);
  } else {
    const Product product = attention.query.product(attention.query.read(source));
    const Columns query{product, 0, size}, key{product, size, of_keys};
    const Columns value{product, size + of_keys, of_keys};
    context = attention.out.operand(new_tokens(source, source.size(0), size));
    attend(query, key, value, cu_seqlens, cu_seqlens, heads, form, *context);
  }
  const Product attended = attention.out.product(*context);
  if (norm_first) return {behind_attention(attended.finished(), residual), out_offsets};
  const Operand middle = mlp.up.operand(attended.rows);
  add_norm(attended, residual, *attention_norm, middle);
  const Product out = mlp(middle);
  add_norm(out, middle.rows, mlp_norm, Operand::of(out.rows));
  return {out.rows, out_offsets};
}

}  // namespace consistentee
