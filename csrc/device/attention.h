// Attention within the rows of packed tokens: aten::_flash_attention_forward.
#pragma once

#include "stable.h"

namespace consistentee::device {

// The heads that lie side by side in a product [T, O], from column `first` on.
struct Heads {
  const Tensor& product;
  int64_t first;
};

struct RowBounds {
  const Tensor& offsets;  // [B + 1] int32
  int64_t longest;        // no row has more tokens
};

// Of 16 bits. `arguments`: how many the schema has. It grows at its end, from one torch to the next, by
// arguments that are None by default.
void check_flash_arguments(int64_t arguments);

// softmax(Q K^T / sqrt(d)) V within each row, [Tq, heads * d].
Tensor flash_attention(
    const Heads& query,
    const Heads& key,
    const Heads& value,
    const RowBounds& queries,
    const RowBounds& keys,
    int64_t num_heads,
    int64_t head_size);

}  // namespace consistentee::device
