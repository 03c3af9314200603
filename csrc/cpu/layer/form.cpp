// Forms of attention: from an op's arguments, checked, and as the kernel reads them.

#include <algorithm>
#include <cmath>

#include "cpu/batch.h"
#include "cpu/layer/layer.h"

namespace consistentee {
namespace {

// A table by distance [rows, 2 P - 1], of rows no longer than P: the entry of distance 0 of a row.
template <typename T>
const T* at_distance_0(const Tensor& table, int64_t row = 0) {
  const int64_t entries = table.size(table.dim() - 1);
  return data<T>(table) + row * entries + entries / 2;
}

const float* optional_data(const std::optional<Tensor>& tensor) {
  return tensor ? data<float>(*tensor) : nullptr;
}

}  // namespace

void check_form(const Form& form, int64_t num_heads, int64_t size, int64_t longest) {
  const int64_t distances = 2 * longest - 1;
  if (form.low.value_or(0) > 0 || form.high.value_or(0) < 0) {
    fail("low, high: expected 0 between them, as a query attends to itself");
  }
  if (form.cos.has_value() != form.sin.has_value()) fail("cos, sin: expected both or none");
  if (form.cos) {
    if (form.cos->dim() != 2 || form.cos->size(0) < longest || 2 * form.cos->size(1) > size) {
      fail("cos: expected shape [P, r / 2] for rows no longer than P and r of each head's numbers");
    }
    for (const auto& table : {*form.cos, *form.sin}) {
      const int64_t positions = form.cos->size(0), angles = form.cos->size(1);
      check_tensor(table, "cos, sin", ScalarType::Float, {positions, angles});
    }
  }
  if (form.bias) {
    if (form.bias->dim() != 2 || form.bias->size(1) < distances || form.bias->size(1) % 2 == 0) {
      fail("bias: expected shape [heads, 2 P - 1] for rows no longer than P");
    }
    check_tensor(*form.bias, "bias", ScalarType::Float, {num_heads, form.bias->size(1)});
  }
  const auto& keys = form.relative_keys;
  const auto& queries = form.relative_queries;
  if (form.buckets.has_value() != (keys || queries)) {
    fail("buckets: expected them with relative_keys or relative_queries");
  }
  if (form.buckets) {
    if (form.buckets->dim() != 1 || form.buckets->numel() < distances ||
        form.buckets->numel() % 2 == 0) {
      fail("buckets: expected shape [2 P - 1] for rows no longer than P");
    }
    check_tensor(*form.buckets, "buckets", ScalarType::Int, {form.buckets->numel()});
    const int64_t count = keys ? keys->size(1) : queries->size(2);
    if (keys) check_tensor(*keys, "relative_keys", ScalarType::Float, {num_heads, count, size});
    if (queries) {
      check_tensor(*queries, "relative_queries", ScalarType::Float, {num_heads, size, count});
    }
    const int32_t* buckets = data<int32_t>(*form.buckets);
    const int64_t entries = form.buckets->numel();
    if (count % 16 || !std::is_sorted(buckets, buckets + entries) || buckets[0] < 0 ||
        buckets[entries - 1] >= count) {
      fail("buckets: expected rising numbers below R, a multiple of 16");
    }
  }
  for (const auto& norm : {form.query_norm, form.key_norm}) {
    if (norm) check_tensor(*norm, "query_norm, key_norm", ScalarType::Float, {size});
  }
}

AttentionForm form_of(const Form& form, int64_t head, int64_t size) {
  AttentionForm own{};
  own.scale = static_cast<float>(form.scale);
  own.low = form.low.value_or(-kFar);
  own.high = form.high.value_or(kFar);
  own.cos = optional_data(form.cos);
  own.sin = optional_data(form.sin);
  own.rotated = form.cos ? 2 * form.cos->size(1) : 0;
  if (form.bias) own.bias = at_distance_0<float>(*form.bias, head);
  if (form.buckets) {
    const auto& keys = form.relative_keys;
    const auto& queries = form.relative_queries;
    own.num_buckets = keys ? keys->size(1) : queries->size(2);
    const int64_t table = head * own.num_buckets * size;
    own.buckets = at_distance_0<int32_t>(*form.buckets);
    if (keys) own.relative_keys = data<float>(*keys) + table;
    if (queries) own.relative_queries = data<float>(*queries) + table;
  }
  own.query_norm = optional_data(form.query_norm);
  own.key_norm = optional_data(form.key_norm);
  own.query_eps = static_cast<float>(form.query_norm_eps);
  own.key_eps = static_cast<float>(form.key_norm_eps);
  return own;
}

Form make_form(
    int64_t num_heads,
    int64_t head_size,
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
  return {
      num_kv_heads.value_or(num_heads),
      scale.value_or(1.0 / std::sqrt(static_cast<double>(head_size))),
      low,
      high,
      cos,
      sin,
      bias,
      relative_keys,
      relative_queries,
      buckets,
      query_norm,
      key_norm,
      query_norm_eps,
      key_norm_eps,
      last_queries};
}

}  // namespace consistentee
