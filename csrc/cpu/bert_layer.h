// One layer of a BERT encoder on packed tokens.
#pragma once

#include <optional>

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

  // hidden [T, H] to [T, H], or to [B, H] for first tokens alone.
  Tensor operator()(const Tensor& hidden, const Tensor& cu_seqlens) const;
};

// Offsets [B+1] of B rows of one token.
Tensor one_token_a_row(const Tensor& cu_seqlens);

}  // namespace consistentee
