// Matrix products with weights packed for oneDNN.
#pragma once

#include <optional>
#include <string>

#include "stable.h"

namespace consistentee {

// weight [O, I] as consistentee_ext/linear.py packs it, bias [O]; oneDNN's names of the function
// applied to the product, and of its variant.
struct PackedLinear {
  Tensor weight;
  Tensor bias;
  std::string activation = "none";
  std::string algorithm = {};

  // x [T, I] -> [T, O]. Where more rows lie behind x in memory, some of them are computed as well,
  // and lie behind the result.
  Tensor operator()(const Tensor& x) const;
};

// A new [tokens, size], with rows of zeros behind it for a product to compute (other numbers may be
// slow).
Tensor new_tokens(const Tensor& like, int64_t tokens, int64_t size);

// The first `tokens` rows of a tensor.
Tensor first_rows(const Tensor& tensor, int64_t tokens);

}  // namespace consistentee
