// attend: self-attention within each row of packed tokens.

#include <algorithm>
#include <atomic>
#include <memory>
#include <vector>

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

Tensor Columns::tensor() const {
  Tensor all = product.rows;
  return torch::stable::narrow(all, 1, first, size);
}

void attend(
    const Columns& query_of,
    const Columns& key_of,
    const Columns& value_of,
    const Tensor& query_offsets,
    const Tensor& key_offsets,
    int64_t num_heads,
    const Form& form,
    const Operand& out) {
  const Tensor query = query_of.tensor(), key = key_of.tensor(), value = value_of.tensor();
  const int64_t query_stride = check_tokens(query, "query", query);
  const int64_t key_stride = check_tokens(key, "key", query);
  const int64_t value_stride = check_tokens(value, "value", query);
  const int64_t tokens = query.size(0), hidden_size = query.size(1);
  if (num_heads < 1 || hidden_size % num_heads) fail("num_heads: expected a divisor of H");
  if (form.num_kv_heads < 1 || num_heads % form.num_kv_heads) {
    fail("num_kv_heads: expected a divisor of num_heads");
  }
  const int64_t head_size = hidden_size / num_heads, of_keys = form.num_kv_heads * head_size;
  if (key.size(1) != of_keys || value.size(1) != of_keys || key.size(0) != value.size(0)) {
    fail("key, value: expected the same number of tokens, and the head size of query");
  }
  const int64_t rows = count_rows(query_offsets, "query_offsets");
  const int32_t* queries = check_offsets(query_offsets, "query_offsets", rows, tokens);
  const int32_t* keys = check_offsets(key_offsets, "key_offsets", rows, key.size(0));
  int64_t most_queries = 0, most_keys = 1;
  for (int64_t row = 0; row < rows; ++row) {
    most_queries = std::max<int64_t>(most_queries, queries[row + 1] - queries[row]);
    most_keys = std::max<int64_t>(most_keys, keys[row + 1] - keys[row]);
  }
  check_form(form, num_heads, head_size, std::max(most_queries, most_keys));
  std::vector<AttentionForm> forms;
  for (int64_t head = 0; head < num_heads; ++head) forms.push_back(form_of(form, head, head_size));

  // A row's part of the products, which no other row reads.
  const bool one_product = &query_of.product == &key_of.product;
  const auto finish = [&](int64_t row) {
    query_of.product.finish(queries[row], queries[row + 1]);
    if (!one_product) key_of.product.finish(keys[row], keys[row + 1]);
  };
  const auto each_row = [&](const auto& f) {
    torch::stable::parallel_for(0, rows, 1, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) f(row);
    });
  };
  dispatch(query, "query", [&](const auto& kernels, auto element) {
    using scalar_t = decltype(element);
    const bool relative = form.buckets.has_value();
    const int64_t memory = cpu_kernels().attention_scratch(most_queries, head_size, relative);
    const int64_t threads = torch::stable::get_num_threads();
    // With rows enough for all threads, one takes all heads of a row: while it computes one head,
    // the next is on its way from memory.
    const int64_t heads = rows >= 4 * threads ? num_heads : 1;
    const int64_t groups = num_heads / heads, tasks = rows * groups;
    const int64_t shared = num_heads / form.num_kv_heads;
    const auto head_at = [&](int64_t row, int64_t head) {
      const int64_t column = head * head_size, kv_column = head / shared * head_size;
      const int64_t num_queries = queries[row + 1] - queries[row];
      const int64_t num_keys = keys[row + 1] - keys[row];
      AttentionForm own = forms[head];
      own.first_place = form.last_queries ? num_keys - num_queries : 0;
      return AttentionHead<scalar_t>{
          data<scalar_t>(query) + queries[row] * query_stride + column,
          data<scalar_t>(key) + keys[row] * key_stride + kv_column,
          data<scalar_t>(value) + keys[row] * value_stride + kv_column,
          query_stride,
          key_stride,
          value_stride,
          hidden_size,
          num_queries,
          num_keys,
          head_size,
          own,
      };
    };
    const bool whole_rows = groups == 1, in_parts = query_of.product.scales || out.integers;
    if (in_parts && !whole_rows) each_row(finish);
    // Rows differ in length: a thread that is done takes the next task.
    std::atomic<int64_t> next{0};
    torch::stable::parallel_for(0, std::min(threads, tasks), 1, [&](int64_t, int64_t) {
      const std::unique_ptr<float[]> scratch(new float[memory]);  // a vector would write zeros
      for (int64_t task = next++; task < tasks; task = next++) {
        const int64_t row = task / groups, first = task % groups * heads;
        if (whole_rows) finish(row);
        for (int64_t head = first; head < first + heads; ++head) {
          if (head + 1 < first + heads) prefetch(head_at(row, head + 1));
          kernels.attend_head(
              head_at(row, head),
              mutable_data<scalar_t>(out.rows) + queries[row] * hidden_size + head * head_size,
              scratch.get());
        }
        if (whole_rows) out.write(queries[row], queries[row + 1]);
      }
    });
    if (in_parts && !whole_rows) {
      each_row([&](int64_t row) { out.write(queries[row], queries[row + 1]); });
    }
  });
}

namespace {

Tensor attention(
    const Tensor& query,
    const Tensor& key,
    const Tensor& value,
    const Tensor& query_offsets,
    const Tensor& key_offsets,
    int64_t num_heads,
    const std::optional<int64_t>& num_kv_heads,
    const std::optional<double>& scale,
    const std::optional<int64_t>& low,
    const std::optional<int64_t>& high,
    const std::optional<Tensor>& cos,
    const std::optional<Tensor>& sin,
    const std::optional<Tensor>& bias,
    const std::optional<Tensor>& relative_keys,
    const std::optional<Tensor>& relative_queries,
    const std::optional<Tensor>& buckets,
    const std::optional<Tensor>& query_norm,
    double query_norm_eps,
    const std::optional<Tensor>& key_norm,
    double key_norm_eps,
    bool last_queries) {
  if (num_heads < 1 || query.dim() != 2) fail("num_heads: expected at least 1, of query [Tq, H]");
  const Form form = make_form(
      num_heads,
      query.size(1) / num_heads,
      num_kv_heads,
      scale,
      low,
      high,
      cos,
      sin,
      bias,
      relative_keys,
      relative_queries,
      buckets,
      query_norm,
      query_norm_eps,
      key_norm,
      key_norm_eps,
      last_queries);
  const Product queries = Product::of(query), keys = Product::of(key), values = Product::of(value);
  const Operand out = Operand::of(new_tokens(query, query.size(0), query.size(1)));
  attend(
      {queries, 0, query.size(1)},
      {keys, 0, key.size(1)},
      {values, 0, value.size(1)},
      query_offsets,
      key_offsets,
      num_heads,
      form,
      out);
  return out.rows;
}

}  // namespace

}  // namespace consistentee

STABLE_TORCH_LIBRARY_IMPL(consistentee, CPU, m) {
  m.impl("attention", TORCH_BOX(&consistentee::attention));
}
