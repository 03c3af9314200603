// A packed batch as the CPU ops see it: checked once, then read through raw pointers.
#pragma once

#include <algorithm>
#include <cstring>
#include <tuple>

#include "cpu/kernels.h"
#include "stable.h"

namespace consistentee {

struct Batch {
  int64_t rows;    // B
  int64_t tokens;  // T
  int64_t hidden_size;
  const int32_t* cu_seqlens;
};

// B of offsets [B+1].
inline int64_t count_rows(const Tensor& offsets, const char* name) {
  if (offsets.dim() != 1 || offsets.size(0) < 1) {
    fail(std::string(name) + ": expected a tensor of shape [B + 1]");
  }
  return offsets.size(0) - 1;
}

// Checks offsets [B+1], which must rise from 0 to `tokens`.
inline const int32_t* check_offsets(
    const Tensor& offsets, const char* name, int64_t rows, int64_t tokens) {
  check_tensor(offsets, name, ScalarType::Int, {rows + 1});
  const int32_t* values = data<int32_t>(offsets);
  if (!std::is_sorted(values, values + rows + 1) || values[0] != 0 || values[rows] != tokens) {
    fail(std::string(name) + ": expected offsets that rise from 0 to the number of tokens");
  }
  return values;
}

inline void check_hidden(const Tensor& hidden) {
  if (hidden.dim() != 2 || !hidden.is_contiguous()) {
    fail("hidden: expected a contiguous tensor of shape [T, H]");
  }
}

// Checks hidden [T, H] and cu_seqlens [B+1].
inline Batch check_batch(const Tensor& hidden, const Tensor& cu_seqlens) {
  check_hidden(hidden);
  const int64_t rows = count_rows(cu_seqlens, "cu_seqlens"), tokens = hidden.size(0);
  const int32_t* offsets = check_offsets(cu_seqlens, "cu_seqlens", rows, tokens);
  return {rows, tokens, hidden.size(1), offsets};
}

// A new [tokens, size], followed in memory by rows that a matrix product may compute as well: it is
// prepared anew for each number of rows, so consistentee_ext/linear.py rounds that number up. They
// are zeros, as other numbers may be slow.
inline Tensor new_tokens(const Tensor& like, int64_t tokens, int64_t size) {
  constexpr int64_t kMoreRows = 31;
  Tensor out = torch::stable::new_empty(like, {tokens + kMoreRows, size});
  const size_t row_bytes = size * out.element_size();
  std::memset(
      static_cast<char*>(out.mutable_data_ptr()) + tokens * row_bytes, 0, kMoreRows * row_bytes);
  return torch::stable::narrow(out, 0, 0, tokens);
}

// Calls f with the table's kernels for the dtype of `tensor`, and with its element type.
template <typename F>
void dispatch(const Tensor& tensor, const char* name, const F& f) {
  const CpuKernels& kernels = cpu_kernels();
  switch (tensor.scalar_type()) {
    case ScalarType::Float: return f(kernels.f32, float{});
    case ScalarType::BFloat16: return f(kernels.bf16, BFloat16{});
    case ScalarType::Half: return f(kernels.f16, Half{});
    default:
      fail(
          std::string(name) + ": expected float32, bfloat16 or float16, got " +
          torch::headeronly::toString(tensor.scalar_type()));
  }
}

// The rows whose `keep` byte is not zero, as hidden, cu_seqlens and row_ids of their own.
std::tuple<Tensor, Tensor, Tensor> compact_rows(
    const Batch& batch, const Tensor& hidden, const Tensor& row_ids, const uint8_t* keep);

}  // namespace consistentee
