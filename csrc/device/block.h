// A layer of the device engine: its weights, and the launches of a pass over them.
#pragma once

#include <optional>
#include <string>

#include "device/attention.h"

namespace consistentee::device {

// f(x W^T + b).
class Linear {
 public:
  // Weight [O, I], bias [O]; activation: none, gelu, gelu_pytorch_tanh, relu, silu or tanh.
  Linear(Tensor weight, std::optional<Tensor> bias, const std::string& activation = "none");

  // [T, I] -> [T, O].
  Tensor operator()(const Tensor& x) const;

 private:
  Tensor weight_;
  std::optional<Tensor> bias_;
  const char* activation_ = nullptr;  // an op that writes over its argument
  std::string gelu_;                  // its approximation, where it is a GELU
};

struct Norm {
  Tensor weight, bias;  // [H]
  double eps;
};

// Rows on their way; how many there are is bounded by the sizes.
struct Batch {
  Tensor hidden;      // [T, H]; tokens behind the last row may have any value
  Tensor cu_seqlens;  // [B + 1] int32
  Tensor row_ids;     // [B] int64, -1 where a row is absent or has left
  int64_t longest;    // no row has more tokens

  int64_t tokens() const { return hidden.size(0); }
  int64_t rows() const { return row_ids.size(0); }
};

struct Attention {
  Linear query;                     // with keys and values, where key_value is absent
  std::optional<Linear> key_value;  // present: the first token of each row alone has a query
  Linear out;
  int64_t num_heads, head_size;
};

// x = norm(x + attention(x)), then x = norm(x + down(up(x))).
struct Block {
  Attention attention;
  Norm attention_norm;
  Linear up, down;
  Norm mlp_norm;

  // The operands of the last norm: what is added [Tq, H], and `batch` of the residual. Rows of one
  // token have the offsets `one_a_row` [B + 1] int32.
  Tensor before_last_norm(Batch& batch, const std::optional<Tensor>& one_a_row) const;

  // The batch behind the block.
  void operator()(Batch& batch, const std::optional<Tensor>& one_a_row) const;
};

}  // namespace consistentee::device
