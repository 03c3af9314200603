// pack: the tokens of a padded batch side by side, longest rows first.

#include <algorithm>
#include <numeric>
#include <optional>
#include <vector>

#include "cpu/batch.h"

namespace consistentee {
namespace {

// A matrix [B, S] of int64 or int32, a mask also of bool, read as int64.
class Integers {
 public:
  Integers(const Tensor& tensor, const char* name, int64_t rows, int64_t width, bool mask = false)
      : dtype_(tensor.scalar_type()), width_(width), data_(tensor.const_data_ptr()) {
    const bool narrow = dtype_ == ScalarType::Int || (mask && dtype_ == ScalarType::Bool);
    if (!narrow) dtype_ = ScalarType::Long;
    check_tensor(tensor, name, dtype_, {rows, width});
  }

  int64_t operator()(int64_t row, int64_t column) const {
    const int64_t i = row * width_ + column;
    if (dtype_ == ScalarType::Long) return static_cast<const int64_t*>(data_)[i];
    if (dtype_ == ScalarType::Int) return static_cast<const int32_t*>(data_)[i];
    return static_cast<const uint8_t*>(data_)[i];
  }

 private:
  ScalarType dtype_;
  int64_t width_;
  const void* data_;
};

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> pack(
    const Tensor& input_ids,
    const std::optional<Tensor>& attention_mask,
    const std::optional<Tensor>& token_type_ids,
    int64_t vocab_size,
    int64_t type_vocab_size,
    int64_t num_positions,
    const std::optional<int64_t>& padding_id,
    bool by_place,
    const std::optional<int64_t>& trailing_id) {
  if (input_ids.dim() != 2) fail("input_ids: expected a tensor of shape [B, S]");
  const int64_t rows = input_ids.size(0), width = input_ids.size(1);
  const Integers ids(input_ids, "input_ids", rows, width);
  std::optional<Integers> mask, types;
  if (attention_mask) mask.emplace(*attention_mask, "attention_mask", rows, width, true);
  if (token_type_ids) types.emplace(*token_type_ids, "token_type_ids", rows, width);

  std::vector<int32_t> lengths(rows, static_cast<int32_t>(width));
  std::vector<int64_t> ends(rows, width);  // the column behind the last token of a row
  if (mask || trailing_id) {
    for (int64_t row = 0; row < rows; ++row) {
      int32_t length = 0;
      lengths[row] = 0;
      for (int64_t column = 0; column < width; ++column) {
        const int64_t value = mask ? (*mask)(row, column) : 1;
        if (value != 0 && value != 1) fail("attention_mask: expected only 0 and 1");
        length += static_cast<int32_t>(value);
        if (value && (length == 1 || !trailing_id || ids(row, column) != *trailing_id)) {
          lengths[row] = length;
          ends[row] = column + 1;
        }
      }
    }
  }
  Tensor row_ids = torch::stable::new_empty(input_ids, {rows}, ScalarType::Long);
  int64_t* order = mutable_data<int64_t>(row_ids);
  std::iota(order, order + rows, 0);
  std::stable_sort(
      order, order + rows, [&](int64_t a, int64_t b) { return lengths[a] > lengths[b]; });
  Tensor cu_seqlens = torch::stable::new_empty(input_ids, {rows + 1}, ScalarType::Int);
  int32_t* offsets = mutable_data<int32_t>(cu_seqlens);
  offsets[0] = 0;
  for (int64_t i = 0; i < rows; ++i) {
    if (lengths[order[i]] == 0) fail("attention_mask: expected at least one token a row");
    offsets[i + 1] = offsets[i] + lengths[order[i]];
  }

  const int64_t tokens = offsets[rows];
  Tensor packed_ids = torch::stable::new_empty(input_ids, {tokens}, ScalarType::Long);
  Tensor packed_types = torch::stable::new_empty(input_ids, {tokens}, ScalarType::Long);
  Tensor positions = torch::stable::new_empty(input_ids, {tokens}, ScalarType::Long);
  int64_t* out_ids = mutable_data<int64_t>(packed_ids);
  int64_t* out_types = mutable_data<int64_t>(packed_types);
  int64_t* out_positions = mutable_data<int64_t>(positions);
  for (int64_t i = 0, token = 0; i < rows; ++i) {
    int64_t counted = 0;  // ids so far that differ from padding_id, masked ones among them
    int64_t begin = -1;   // the column of the row's first token
    for (int64_t column = 0; column < ends[order[i]]; ++column) {
      const int64_t id = ids(order[i], column);
      if (padding_id && id != *padding_id) ++counted;
      if (mask && !(*mask)(order[i], column)) continue;
      if (begin < 0) begin = column;
      if (by_place && column - begin != token - offsets[i]) {
        fail("attention_mask: expected no zeros between the tokens of a row");
      }
      int64_t position = column - begin;
      if (padding_id) position = *padding_id + (id == *padding_id ? 0 : counted);
      const int64_t type = types ? (*types)(order[i], column) : 0;
      if (id < 0 || id >= vocab_size) fail("input_ids: expected ids of the vocabulary");
      if (type < 0 || type >= type_vocab_size) fail("token_type_ids: expected known segments");
      if (position >= num_positions) fail("input_ids: expected fewer positions");
      out_ids[token] = id;
      out_types[token] = type;
      out_positions[token++] = position;
    }
  }
  return {packed_ids, packed_types, positions, cu_seqlens, row_ids};
}

}  // namespace
}  // namespace consistentee

STABLE_TORCH_LIBRARY_IMPL(consistentee, CPU, m) { m.impl("pack", TORCH_BOX(&consistentee::pack)); }
