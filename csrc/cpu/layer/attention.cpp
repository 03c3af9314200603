// attend: self-attention within each row of packed tokens.

#include <algorithm>
#include <atomic>
#include <memory>

#include "cpu/batch.h"
#include "cpu/layer/layer.h"

namespace consistentee {
namespace {

// Tokens [T, H] whose rows of a tensor may lie apart, as a slice of a wider product does.
int64_t check_tokens(const Tensor& tokens, const char* name, const Tensor& like) {
  if (tokens.dim() != 2 || tokens.stride(1) != 1 || tokens.scalar_type() != like.scalar_type()) {
    fail(std::string(name) + ": expected shape [T, H], neighbours in H, and the dtype of query");
  }
  return tokens.stride(0);
}

template <typename scalar_t>
void prefetch(const AttentionHead<scalar_t>& head) {
  constexpr int64_t kLine = 64 / sizeof(scalar_t);
  const auto lines = [&](const scalar_t* tokens, int64_t stride, int64_t count) {
    for (int64_t token = 0; token < count; ++token, tokens += stride) {
      for (int64_t i = 0; i < head.head_size; i += kLine) __builtin_prefetch(tokens + i, 0, 2);
    }
  };
  lines(head.query, head.query_stride, head.queries);
  lines(head.key, head.key_stride, head.keys);
  lines(head.value, head.value_stride, head.keys);
}

}  // namespace

Tensor attend(
    const Tensor& query,
    const Tensor& key,
    const Tensor& value,
    const Tensor& query_offsets,
    const Tensor& key_offsets,
    int64_t num_heads) {
  const int64_t query_stride = check_tokens(query, "query", query);
  const int64_t key_stride = check_tokens(key, "key", query);
  const int64_t value_stride = check_tokens(value, "value", query);
  const int64_t tokens = query.size(0), hidden_size = query.size(1);
  if (key.size(1) != hidden_size || value.size(1) != hidden_size || key.size(0) != value.size(0)) {
    fail("key, value: expected the same number of tokens, and the hidden size of query");
  }
  if (num_heads < 1 || hidden_size % num_heads) fail("num_heads: expected a divisor of H");
  const int64_t rows = count_rows(query_offsets, "query_offsets");
  const int32_t* queries = check_offsets(query_offsets, "query_offsets", rows, tokens);
  const int32_t* keys = check_offsets(key_offsets, "key_offsets", rows, key.size(0));
  int64_t most_queries = 0;
  for (int64_t row = 0; row < rows; ++row) {
    most_queries = std::max<int64_t>(most_queries, queries[row + 1] - queries[row]);
  }

  Tensor out = new_tokens(query, tokens, hidden_size);
  dispatch(query, "query", [&](const auto& kernels, auto element) {
    using scalar_t = decltype(element);
    const int64_t head_size = hidden_size / num_heads;
    const int64_t memory = cpu_kernels().attention_scratch(most_queries, head_size);
    const int64_t threads = torch::stable::get_num_threads();
    // With rows enough for all threads, one takes all heads of a row: while it computes one head,
    // the next is on its way from memory.
    const int64_t heads = rows >= 4 * threads ? num_heads : 1;
    const int64_t groups = num_heads / heads, tasks = rows * groups;
    const auto head_at = [&](int64_t row, int64_t head) {
      const int64_t column = head * head_size;
      return AttentionHead<scalar_t>{
          data<scalar_t>(query) + queries[row] * query_stride + column,
          data<scalar_t>(key) + keys[row] * key_stride + column,
          data<scalar_t>(value) + keys[row] * value_stride + column,
          query_stride,
          key_stride,
          value_stride,
          hidden_size,
          queries[row + 1] - queries[row],
          keys[row + 1] - keys[row],
          head_size,
      };
    };
    // Rows differ in length: a thread that is done takes the next task.
    std::atomic<int64_t> next{0};
    torch::stable::parallel_for(0, std::min(threads, tasks), 1, [&](int64_t, int64_t) {
      const std::unique_ptr<float[]> scratch(new float[memory]);  // a vector would write zeros
      for (int64_t task = next++; task < tasks; task = next++) {
        const int64_t row = task / groups, first = task % groups * heads;
        for (int64_t head = first; head < first + heads; ++head) {
          if (head + 1 < first + heads) prefetch(head_at(row, head + 1));
          kernels.attend_head(
              head_at(row, head),
              mutable_data<scalar_t>(out) + queries[row] * hidden_size + head * head_size,
              scratch.get());
        }
      }
    });
  });
  return out;
}

}  // namespace consistentee

STABLE_TORCH_LIBRARY_IMPL(consistentee, CPU, m) {
  m.impl("attention", TORCH_BOX(&consistentee::attend));
}
