// One layer of a BERT encoder on packed tokens.
#pragma once

#include <optional>
#include <utility>

#include "cpu/batch.h"

namespace consistentee {

struct BertLayer {
  PackedLinear query;                     // with keys and values, where key_value is absent
  std::optional<PackedLinear> key_value;  // present: compute the first token of each row alone
  PackedLinear attention_output;
  Tensor attention_norm_weight, attention_norm_bias;
  PackedLinear up, down;
  Tensor output_norm_weight, output_norm_bias;
  double eps;
  int64_t num_heads;

  // hidden [T, H] and its offsets to those that follow: [T, H], or [B, H] for first tokens alone.
  std::pair<Tensor, Tensor> operator()(const Tensor& hidden, const Tensor& cu_seqlens) const;
};

}  // namespace consistentee
