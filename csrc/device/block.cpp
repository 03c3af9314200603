#include "device/block.h"

#include <utility>

#include "device/call.h"

namespace consistentee::device {
namespace {

// hidden = norm(hidden + residual), both [T, H].
void add_norm(const Tensor& hidden, const Tensor& residual, const Norm& norm) {
  run("consistentee::add_norm_", hidden, residual, norm.weight, norm.bias, norm.eps);
}

}  // namespace

Linear::Linear(Tensor weight, std::optional<Tensor> bias, const std::string& activation)
    : weight_(std::move(weight)), bias_(std::move(bias)) {
  if (activation == "none") return;
  if (activation == "gelu" || activation == "gelu_pytorch_tanh") {
    activation_ = "aten::gelu_";
    gelu_ = activation == "gelu" ? "none" : "tanh";
  } else if (activation == "relu") {
    activation_ = "aten::relu_";
  } else if (activation == "silu") {
    activation_ = "aten::silu_";
  } else if (activation == "tanh") {
    activation_ = "aten::tanh_";
  } else {
    fail(
        "activation: expected none, gelu, gelu_pytorch_tanh, relu, silu or tanh, got " +
        activation);
  }
}

Tensor Linear::operator()(const Tensor& x) const {
  const Tensor y = call("aten::linear", x, weight_, bias_);
  if (activation_ == nullptr) return y;
  return gelu_.empty() ? call(activation_, y) : call(activation_, y, gelu_);
}

Tensor Block::before_last_norm(Batch& batch, const std::optional<Tensor>& one_a_row) const {
  const int64_t heads = attention.num_heads, head_size = attention.head_size;
  const int64_t size = heads * head_size;
  const Tensor offsets = batch.cu_seqlens;
  const RowBounds keys{offsets, batch.longest};
  Tensor context;
  if (attention.key_value) {
    const Tensor product = (*attention.key_value)(batch.hidden);
    const Tensor begins = first_of(offsets, batch.rows());
    batch.hidden = call("aten::index_select", batch.hidden, int64_t{0}, begins);
    if (!one_a_row) fail("one_a_row: expected it where a block computes first tokens alone");
    batch.cu_seqlens = first_of(*one_a_row, batch.rows() + 1);
    batch.longest = 1;
    const Tensor query = attention.query(batch.hidden);
    const RowBounds queries{batch.cu_seqlens, 1};
    context =
        flash_attention({query, 0}, {product, 0}, {product, size}, queries, keys, heads, head_size);
  } else {
    const Tensor all = attention.query(batch.hidden);
    context = flash_attention({all, 0}, {all, size}, {all, 2 * size}, keys, keys, heads, head_size);
  }
  const Tensor attended = attention.out(context);
  add_norm(attended, batch.hidden, attention_norm);
  batch.hidden = attended;
  return down(up(attended));
}

void Block::operator()(Batch& batch, const std::optional<Tensor>& one_a_row) const {
  const Tensor added = before_last_norm(batch, one_a_row);
  add_norm(added, batch.hidden, mlp_norm);
  batch.hidden = added;
}

}  // namespace consistentee::device
