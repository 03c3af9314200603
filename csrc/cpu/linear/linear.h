// Matrix products with prepacked weights.
#pragma once

#include <optional>
#include <string>

#include "stable.h"

namespace consistentee {

// f(x W^T + b): weight [O, I] as consistentee_ext/ops/onednn.py prepacks it, bias [O] or none.
class PrepackedLinear {
 public:
  // Activation: none, gelu, gelu_pytorch_tanh, relu, silu or tanh.
  PrepackedLinear(
      Tensor weight, std::optional<Tensor> bias, const std::string& activation = "none");

  // x [T, I] -> [T, O]. Where more rows lie behind x in memory, some of them are computed as well,
  // and lie behind the result.
  Tensor operator()(const Tensor& x) const;

 private:
  Tensor weight_;
  std::optional<Tensor> bias_;
  const char* function_;   // oneDNN's name of the activation,
  const char* algorithm_;  // and of its variant
};

// A new [tokens, size], with rows of zeros behind it for a product to compute (other numbers may be
// slow).
Tensor new_tokens(const Tensor& like, int64_t tokens, int64_t size);

// The first `tokens` rows of a tensor.
Tensor first_rows(const Tensor& tensor, int64_t tokens);

}  // namespace consistentee
