// Matrix products.
#pragma once

#include <optional>
#include <string>
#include <utility>

#include "kernels/cpu/table.h"
#include "stable.h"

namespace consistentee {

// What weights of 8 bits have beside their integers.
struct Int8 {
  Tensor scale;    // [O] float32: a weight is its integer times the scale of its row
  int64_t levels;  // an activation is an integer from 0 to 2 levels + 1; 127, or 63 without VNNI
  Tensor one, zero_point, zeros;  // what the product's interface takes: [1], [1] and [O]
};

// From the arguments of an op, checked; none without scale.
std::optional<Int8> optional_int8(const std::optional<Tensor>& scale, int64_t levels);

// Rows [T, I] that a product reads, with room for them as integers of 8 bits where it reads those.
struct Operand {
  Tensor rows;                     // where there are integers, of these the dtype alone is read
  std::optional<Tensor> integers;  // [T, I] uint8
  std::optional<Tensor> scales;    // [T, 2] float32, the TokenScale of each row
  int64_t levels;

  // Of rows that no product with weights of 8 bits reads.
  static Operand of(Tensor rows) { return {std::move(rows), std::nullopt, std::nullopt, 0}; }

  // What the product needs of rows [begin, end), which have just been written: to be called while
  // they are in the cache.
  void write(int64_t begin, int64_t end) const;
};

// Rows [T, O] of a product. With weights of 8 bits they lack scale, bias and activation until they are
// finished, by the op that reads them, right before it does.
struct Product {
  Tensor rows;
  std::optional<Tensor> scales;  // [T, 2] float32, of the operand
  OutputScale output;

  // Of rows that lack nothing.
  static Product of(Tensor rows) { return {std::move(rows), std::nullopt, {}}; }

  void finish(int64_t begin, int64_t end) const;
  Tensor finished() const;
};

// f(x W^T + b): weight [O, I] as consistentee_ext/ops/onednn.py prepacks it, or as the model has it;
// bias [O] or none, with weights of 8 bits in float32.
class PrepackedLinear {
 public:
  // Activation: none, gelu, gelu_pytorch_tanh, relu, silu or tanh.
  PrepackedLinear(
      Tensor weight,
      std::optional<Tensor> bias,
      const std::string& activation = "none",
      std::optional<Int8> int8 = std::nullopt);

  // x [T, I] -> [T, O]. Where more rows lie behind x in memory, some of them are computed as well,
  // and lie behind the result.
  Tensor operator()(const Tensor& x) const;

  // The same in parts: rows [T, I] that are still to be written; those that are, or are those of a
  // product; and the product.
  Operand operand(const Tensor& rows) const;
  Operand read(const Tensor& rows) const;
  Operand read(const Product& x) const;
  Product product(const Operand& x) const;

 private:
  Tensor weight_;
  std::optional<Tensor> bias_;
  Activation activation_;
  bool prepacked_;
  std::optional<Int8> int8_;
  std::optional<Tensor>
      sums_;  // [O] float32: of the weights of each output, where they have 8 bits
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

// The same by oneDNN, of weights prepacked or not.
Tensor float_product(
    const Tensor& x,
    const Tensor& weight,
    const std::optional<Tensor>& bias,
    Activation activation);

// Integers [T, I] by weights of 8 bits [O, I], each sum times the scale of its weights, [T, O] in
// float32 or bfloat16.
Tensor int8_product(
    const Tensor& integers, const Tensor& weight, const Int8& int8, ScalarType dtype);

// A new [tokens, size], with rows of zeros behind it for a product to compute (other numbers may be
// slow).
Tensor new_tokens(const Tensor& like, int64_t tokens, int64_t size);
Tensor new_tokens(const Tensor& like, int64_t tokens, int64_t size, ScalarType dtype);

// The rows of x [T, I] and those behind them up to a round number, if memory has them.
Tensor with_more_rows(const Tensor& x);

// The first `tokens` rows of a tensor.
Tensor first_rows(const Tensor& tensor, int64_t tokens);

}  // namespace consistentee
