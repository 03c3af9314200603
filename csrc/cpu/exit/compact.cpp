// compact_rows: the surviving rows of a packed batch, side by side.
//
// Rows that leave are never kept in the batch to save the copy: it costs as much as computing one token
// in 270 to 630 for one more layer (docs/cpu.md).

#include <cstring>
#include <vector>

#include "cpu/exit/exit.h"
#include "cpu/linear/linear.h"

namespace consistentee {

PackedRows compact_rows(
    const Batch& batch, const Tensor& hidden, const Tensor& row_ids, const uint8_t* keep) {
  std::vector<int64_t> survivors;
  survivors.reserve(batch.rows);
  int64_t tokens = 0;
  for (int64_t row = 0; row < batch.rows; ++row) {
    if (!keep[row]) continue;
    survivors.push_back(row);
    tokens += batch.cu_seqlens[row + 1] - batch.cu_seqlens[row];
  }
  const int64_t rows = static_cast<int64_t>(survivors.size());

  Tensor new_hidden = new_tokens(hidden, tokens, batch.hidden_size);
  Tensor new_cu_seqlens = torch::stable::new_empty(hidden, {rows + 1}, ScalarType::Int);
  Tensor new_row_ids = torch::stable::new_empty(row_ids, {rows});
  int32_t* offsets = mutable_data<int32_t>(new_cu_seqlens);
  int64_t* ids = mutable_data<int64_t>(new_row_ids);
  offsets[0] = 0;
  for (int64_t i = 0; i < rows; ++i) {
    const int64_t row = survivors[i];
    offsets[i + 1] = offsets[i] + batch.cu_seqlens[row + 1] - batch.cu_seqlens[row];
    ids[i] = data<int64_t>(row_ids)[row];
  }

  const int64_t token_bytes = batch.hidden_size * static_cast<int64_t>(hidden.element_size());
  const char* source = static_cast<const char*>(hidden.const_data_ptr());
  char* target = static_cast<char*>(new_hidden.mutable_data_ptr());
  // A thread is worth its start from about 128 KiB of copying.
  const int64_t row_bytes = rows ? tokens * token_bytes / rows : 0;
  const int64_t grain = 1 + (int64_t{128} << 10) / (row_bytes + 1);
  torch::stable::parallel_for(0, rows, grain, [&](int64_t begin, int64_t end) {
    // Survivors that were neighbours move in one copy.
    for (int64_t i = begin; i < end;) {
      int64_t next = i + 1;
      while (next < end && survivors[next] == survivors[next - 1] + 1) ++next;
      std::memcpy(
          target + offsets[i] * token_bytes,
          source + batch.cu_seqlens[survivors[i]] * token_bytes,
          (offsets[next] - offsets[i]) * token_bytes);
      i = next;
    }
  });
  return {new_hidden, new_cu_seqlens, new_row_ids};
}

}  // namespace consistentee
