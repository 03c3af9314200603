// Rows of tokens, with more behind them in memory, so that products see few numbers of rows.

#include <cstring>

#include "cpu/linear/linear.h"

namespace consistentee {
namespace {

// `rows` rounded up, from 128 rows on by at most 6% and seldom by more than 2%.
//
// oneDNN generates code for each number of rows it meets, in 0.1 to 6 ms, and keeps the last 1,024
// products. In a packed batch that loses rows the number is new at nearly every layer. Of few rows
// there are few numbers, and each row is a larger part of the time.
int64_t rows_computed(int64_t rows) {
  const int64_t step = rows < 64 ? 1 : rows < 128 ? 2 : rows < 512 ? 8 : rows < 1024 ? 16 : 32;
  return (rows + step - 1) / step * step;
}

}  // namespace

Tensor with_more_rows(const Tensor& x) {
  const int64_t tokens = x.size(0), size = x.size(1), rows = rows_computed(tokens);
  if (rows == tokens || !x.is_contiguous()) return x;
  int64_t bytes = 0;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_storage_size(x.get(), &bytes));
  const int64_t end = x.storage_offset() + rows * size;
  if (end * static_cast<int64_t>(x.element_size()) > bytes) return x;
  const int64_t sizes[] = {rows, size}, strides[] = {size, 1};
  AtenTensorHandle more = nullptr;
  // It takes the offset from that of x.
  TORCH_ERROR_CODE_CHECK(aoti_torch__reinterpret_tensor(x.get(), 2, sizes, strides, 0, &more));
  return Tensor(more);
}

Tensor new_tokens(const Tensor& like, int64_t tokens, int64_t size) {
  return new_tokens(like, tokens, size, like.scalar_type());
}

Tensor new_tokens(const Tensor& like, int64_t tokens, int64_t size, ScalarType dtype) {
  const int64_t rows = rows_computed(tokens);
  Tensor out = torch::stable::new_empty(like, {rows, size}, dtype);
  const size_t row_bytes = size * out.element_size();
  char* behind = static_cast<char*>(out.mutable_data_ptr()) + tokens * row_bytes;
  if (rows > tokens) std::memset(behind, 0, (rows - tokens) * row_bytes);
  return first_rows(out, tokens);
}

Tensor first_rows(const Tensor& tensor, int64_t tokens) {
  Tensor all = tensor;
  return all.size(0) == tokens ? all : torch::stable::narrow(all, 0, 0, tokens);
}

}  // namespace consistentee
