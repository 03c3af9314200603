// A packed batch as the CPU ops see it: checked once, then read through raw pointers.
#pragma once

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

// Checks hidden [T, H] and cu_seqlens [B+1], whose offsets must rise from 0 to T.
inline Batch check_batch(const Tensor& hidden, const Tensor& cu_seqlens) {
  if (hidden.dim() != 2 || !hidden.is_contiguous()) {
    fail("hidden: expected a contiguous tensor of shape [T, H]");
  }
  if (cu_seqlens.dim() != 1 || cu_seqlens.size(0) < 1) {
    fail("cu_seqlens: expected a tensor of shape [B + 1]");
  }
  const Batch batch{
      cu_seqlens.size(0) - 1, hidden.size(0), hidden.size(1), data<int32_t>(cu_seqlens)};
  check_tensor(cu_seqlens, "cu_seqlens", ScalarType::Int, {batch.rows + 1});
  bool rises = batch.cu_seqlens[0] == 0 && batch.cu_seqlens[batch.rows] == batch.tokens;
  for (int64_t i = 0; i < batch.rows; ++i) {
    rises = rises && batch.cu_seqlens[i] <= batch.cu_seqlens[i + 1];
  }
  if (!rises) fail("cu_seqlens: expected offsets that rise from 0 to the number of tokens");
  return batch;
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
