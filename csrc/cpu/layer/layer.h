// What a layer is made of. Each part runs on packed tokens; csrc/ops.cpp says what it computes.
#pragma once

#include <optional>
#include <utility>

#include "cpu/linear/linear.h"
#include "kernels/cpu/table.h"

namespace consistentee {

struct Norm {
  Tensor weight;               // [H]
  std::optional<Tensor> bias;  // [H]; absent: a root-mean-square norm
  double eps;
};

struct Embedding {
  Tensor words;                            // [entries, E]
  std::optional<Tensor> types, positions;  // [entries, E]
  std::optional<Norm> norm;
  std::optional<PrepackedLinear> product;  // from E to H, behind the norm or before it
  bool product_first;

  // ids, types and positions [T] -> [T, H].
  Tensor operator()(const Tensor& ids, const Tensor& type_ids, const Tensor& position_ids) const;
};

// How an attention differs from BERT's; consistentee_ext/weights.py says what each does.
struct Form {
  int64_t num_kv_heads;
  double scale;
  std::optional<int64_t> low, high;
  std::optional<Tensor> cos, sin;                         // [P, r / 2] float32
  std::optional<Tensor> bias;                             // [heads, 2 P - 1] float32
  std::optional<Tensor> relative_keys, relative_queries;  // float32
  std::optional<Tensor> buckets;                          // [2 P - 1] int32
  std::optional<Tensor> query_norm, key_norm;             // [head_size] float32
  double query_norm_eps, key_norm_eps;
  bool last_queries;
};

// A form from the arguments of an op; what is not given is as in BERT.
Form make_form(
    int64_t num_heads,
    int64_t head_size,
    const std::optional<int64_t>& num_kv_heads,
    const std::optional<double>& scale,
    const std::optional<int64_t>& low,
    const std::optional<int64_t>& high,
    const std::optional<Tensor>& cos,
    const std::optional<Tensor>& sin,
    const std::optional<Tensor>& bias,
    const std::optional<Tensor>& relative_keys,
    const std::optional<Tensor>& relative_queries,
    const std::optional<Tensor>& buckets,
    const std::optional<Tensor>& query_norm,
    double query_norm_eps,
    const std::optional<Tensor>& key_norm,
    double key_norm_eps,
    bool last_queries);

// Checks a form's tensors for heads of `size` and rows of at most `longest` tokens.
void check_form(const Form& form, int64_t num_heads, int64_t size, int64_t longest);

// What the kernel reads of a form for one head.
AttentionForm form_of(const Form& form, int64_t head, int64_t size);

struct Attention {
  PrepackedLinear query;                     // with keys and values, where key_value is absent
  std::optional<PrepackedLinear> key_value;  // present: one token of each row alone has a query
  PrepackedLinear out;
  int64_t num_heads, head_size;
  Form form;
};

struct Mlp {
  PrepackedLinear up, down;
  std::optional<PrepackedLinear> gate;

  // x [T, H], which `up` and `gate` read -> down(up(x)), or down(gate(x) * up(x)).
  Product operator()(const Operand& x) const;
};

struct Block {
  Attention attention;
  std::optional<Norm> attention_norm;
  Mlp mlp;
  Norm mlp_norm;
  bool norm_first;  // the norms come before attention and MLP, not behind the sums
  std::optional<Norm> attention_out_norm, mlp_out_norm;

  // hidden [T, H] and its offsets to those that follow: [T, H], or [B, H] for one token of each row.
  std::pair<Tensor, Tensor> operator()(const Tensor& hidden, const Tensor& cu_seqlens) const;

  // With norm_first: [T, H] from what attention adds to what came in.
  Tensor behind_attention(Tensor attended, const Tensor& residual) const;
};

// Columns of the rows of a product.
struct Columns {
  const Product& product;
  int64_t first, size;

  Tensor tensor() const;
};

// query [Tq, heads * d], key and value [T, kv_heads * d], into `out` [Tq, heads * d]. The products are
// finished, those of the queries and of the keys, which is that of the values, row by row.
void attend(
    const Columns& query,
    const Columns& key,
    const Columns& value,
    const Tensor& query_offsets,
    const Tensor& key_offsets,
    int64_t num_heads,
    const Form& form,
    const Operand& out);

// hidden = norm(hidden + residual), both [T, H], where `out` has the rows of hidden.
void add_norm(const Product& hidden, const Tensor& residual, const Norm& norm, const Operand& out);

// norm(hidden), [T, H].
Tensor normed(const Tensor& hidden, const Norm& norm);

// target += source, both [T, H].
void add(const Tensor& target, const Tensor& source);

}  // namespace consistentee
