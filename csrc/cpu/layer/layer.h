// What a layer is made of. Each part runs on packed tokens; csrc/ops.cpp says what it computes.
#pragma once

#include <optional>
#include <utility>

#include "cpu/linear/linear.h"

namespace consistentee {

struct Norm {
  Tensor weight, bias;  // [H]
  double eps;
};

struct Embedding {
  Tensor words, types, positions;  // [entries, H]
  Norm norm;

  // ids, types and positions [T] -> [T, H].
  Tensor operator()(const Tensor& ids, const Tensor& type_ids, const Tensor& position_ids) const;
};

struct Attention {
  PrepackedLinear query;                     // with keys and values, where key_value is absent
  std::optional<PrepackedLinear> key_value;  // present: the first token of each row alone
  PrepackedLinear out;
  int64_t num_heads;
};

struct Mlp {
  PrepackedLinear up, down;
};

struct Block {
  Attention attention;
  Norm attention_norm;
  Mlp mlp;
  Norm mlp_norm;
  bool norm_first;  // the norms come before attention and MLP, not behind the sums

  // hidden [T, H] and its offsets to those that follow: [T, H], or [B, H] for first tokens alone.
  std::pair<Tensor, Tensor> operator()(const Tensor& hidden, const Tensor& cu_seqlens) const;
};

Tensor attend(
    const Tensor& query,
    const Tensor& key,
    const Tensor& value,
    const Tensor& query_offsets,
    const Tensor& key_offsets,
    int64_t num_heads);

// hidden = norm(hidden + residual), both [T, H].
void add_norm(const Tensor& hidden, const Tensor& residual, const Norm& norm);

// norm(hidden), [T, H].
Tensor normed(const Tensor& hidden, const Norm& norm);

// target += source, both [T, H].
void add(const Tensor& target, const Tensor& source);

}  // namespace consistentee
