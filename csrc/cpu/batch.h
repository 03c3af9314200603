// A packed batch as the CPU ops see it: checked once, then read through raw pointers.
#pragma once

#include <algorithm>
#include <tuple>
#include <type_traits>
#include <vector>

#include "checks.h"
#include "kernels/cpu/table.h"

namespace consistentee {

struct Batch {
  int64_t rows;    // B
  int64_t tokens;  // T
  int64_t hidden_size;
  const int32_t* cu_seqlens;
};

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

// Checks hidden [T, H] and cu_seqlens [B+1].
inline Batch check_batch(const Tensor& hidden, const Tensor& cu_seqlens) {
  check_hidden(hidden);
  const int64_t rows = count_rows(cu_seqlens, "cu_seqlens"), tokens = hidden.size(0);
  const int32_t* offsets = check_offsets(cu_seqlens, "cu_seqlens", rows, tokens);
  return {rows, tokens, hidden.size(1), offsets};
}

// Checks row_ids [B], numbers of the N rows that have results.
inline void check_row_ids(const Tensor& row_ids, int64_t rows, int64_t all_rows) {
  check_tensor(row_ids, "row_ids", ScalarType::Long, {rows});
  const int64_t* ids = data<int64_t>(row_ids);
  if (!std::all_of(ids, ids + rows, [&](int64_t id) { return id >= 0 && id < all_rows; })) {
    fail("row_ids: expected numbers from 0 to N - 1");
  }
}

// Calls f with the table's kernels for the dtype of `tensor`, and with its element type.
template <typename F>
void dispatch(const Tensor& tensor, const char* name, const F& f) {
  const CpuKernels& table = cpu_kernels();
  const auto kernels = std::tie(table.f32, table.bf16, table.f16);
  dispatch_dtype(tensor, name, [&](auto element) {
    f(std::get<const Kernels<decltype(element)>&>(kernels), element);
  });
}

// A norm as the kernels read it.
template <typename scalar_t>
LayerNorm<scalar_t> layer_norm(
    const Tensor& weight, const std::optional<Tensor>& bias, int64_t size, double eps) {
  const scalar_t* offset = bias ? data<scalar_t>(*bias) : nullptr;
  return {data<scalar_t>(weight), offset, size, static_cast<float>(eps)};
}

// Tokens worth a thread's start: about 32 KiB of floats.
inline int64_t norm_grain(int64_t hidden_size) { return 1 + 8192 / (hidden_size + 1); }

// Calls f for ranges of a few of `tokens` rows, which stay in the cache meanwhile, on all threads: as
// f(begin, end), or as f(begin, end, scratch) with room for `size` floats.
template <typename F>
void by_rows(int64_t tokens, int64_t size, const F& f) {
  const int64_t few = 1 + 16384 / (size + 1);
  constexpr bool kScratch = std::is_invocable_v<F, int64_t, int64_t, float*>;
  torch::stable::parallel_for(0, tokens, norm_grain(size), [&](int64_t begin, int64_t end) {
    std::vector<float> scratch(kScratch ? size : 0);
    for (int64_t first = begin; first < end; first += few) {
      const int64_t last = std::min(first + few, end);
      if constexpr (kScratch) {
        f(first, last, scratch.data());
      } else {
        f(first, last);
      }
    }
  });
}

}  // namespace consistentee
