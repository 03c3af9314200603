// The ops of the CUDA library for tensors of the CPU: their sources as they are, on
// host/cuda/launch.h. The CPU has add_norm_ of its own.

#include "cuda/launch.h"
#include "device/call.h"

// The key that the sources register for.
#define CUDA CPU

#include "../../csrc/cuda/events.cu"
#include "../../csrc/cuda/exit/compact.cu"
#include "../../csrc/cuda/exit/exit_step.cu"
#include "../../csrc/cuda/layer/pool.cu"

namespace consistentee {
namespace {

using torch::stable::detail::from;
using torch::stable::detail::to;

// aten::_flash_attention_forward by the CPU's kernel. Its schema has grown from torch to torch; what is
// behind the offsets is not read. Rows without tokens come last, and what nobody may read is NaN.
void flash_attention(StableIValue* stack, uint64_t, uint64_t) {
  const Tensor query = to<Tensor>(stack[0]), key = to<Tensor>(stack[1]);
  const Tensor value = to<Tensor>(stack[2]);
  const Tensor query_offsets = *to<std::optional<Tensor>>(stack[3]);
  const Tensor key_offsets = *to<std::optional<Tensor>>(stack[4]);
  const int32_t *queries = data<int32_t>(query_offsets), *keys = data<int32_t>(key_offsets);
  int64_t rows = 0, most_queries = 0, most_keys = 0;
  while (rows + 1 < key_offsets.size(0) && keys[rows + 1] > keys[rows]) {
    most_queries = std::max<int64_t>(most_queries, queries[rows + 1] - queries[rows]);
    most_keys = std::max<int64_t>(most_keys, keys[rows + 1] - keys[rows]);
    ++rows;
  }
  if (most_queries > to<int64_t>(stack[5]) || most_keys > to<int64_t>(stack[6])) {
    fail("a row is longer than it may be");
  }
  const int64_t heads = query.size(1), size = heads * query.size(2);
  const auto flat = [&](const Tensor& tokens, int64_t count) {
    return device::strided(tokens, 0, {count, size}, {tokens.stride(0), 1});
  };
  const std::nullopt_t none = std::nullopt;
  const Tensor attended = device::call(
      "consistentee::attention",
      flat(query, queries[rows]),
      flat(key, keys[rows]),
      flat(value, keys[rows]),
      device::first_of(query_offsets, rows + 1),
      device::first_of(key_offsets, rows + 1),
      heads,
      none,
      none,
      none,
      none,
      none,
      none,
      none,
      none,
      none,
      none,
      none,
      0.0,
      none,
      0.0,
      false);
  Tensor out = torch::stable::new_empty(query, {query.size(0), heads, query.size(2)});
  torch::stable::fill_(out, std::nan(""));
  std::memcpy(
      out.mutable_data_ptr(), attended.const_data_ptr(), attended.numel() * out.element_size());
  stack[0] = from(out);
  for (int result = 1; result < 5; ++result) stack[result] = from(key_offsets);
}

}  // namespace
}  // namespace consistentee

STABLE_TORCH_LIBRARY_IMPL(aten, CPU, m) {
  m.impl("_flash_attention_forward", &consistentee::flash_attention);
}

extern "C" {

int64_t host_launches() { return consistentee::host_counts().launches; }

int64_t host_waits() { return consistentee::host_counts().waits; }

void host_forget() { consistentee::host_counts() = {}; }

}  // extern "C"
