// Matrix products.
#pragma once

#include <optional>
#include <string>

#include "kernels/cpu/table.h"
#include "stable.h"

namespace consistentee {

// f(x W^T + b): weight [O, I] as consistentee_ext/ops/onednn.py prepacks it, or as the model has it;
// bias [O] or none.
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
  Activation activation_;
  bool prepacked_;
};

// The rows of a product that goes by weights as the model has them, at most: there its time is about
// that of reading the weights, and what a row gives does not depend on their number. With more rows
// oneDNN is faster.
constexpr int64_t kFewRows = 64;

// f(x W^T + b) of any number of rows, without oneDNN: weight [O, I] and bias [O] as the model has them,
// x [T, I].
Tensor few_rows_product(
    const Tensor& x,
    const Tensor& weight,
    const std::optional<Tensor>& bias,
    Activation activation);

// A new [tokens, size], with rows of zeros behind it for a product to compute (other numbers may be
// slow).
Tensor new_tokens(const Tensor& like, int64_t tokens, int64_t size);

// The first `tokens` rows of a tensor.
Tensor first_rows(const Tensor& tensor, int64_t tokens);

}  // namespace consistentee
