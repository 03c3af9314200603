// Attention by every form, and the places of keys and queries.
#pragma once

#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

#include "checks.h"

namespace consistentee {

// The tables of a form: they end where rows of `longest` tokens reach.
struct Tables {
  std::vector<float> cos, sin, bias, relative_keys, relative_queries, query_norm, key_norm;
  std::vector<int32_t> buckets;
  AttentionForm form;
};

inline Tables plain_form(int64_t size) {
  Tables tables;
  tables.form = AttentionForm{};
  tables.form.scale = 1.0f / std::sqrt(static_cast<float>(size));
  tables.form.low = -kFar;
  tables.form.high = kFar;
  return tables;
}

// All that a form may have at once, the window left out or not.
inline Tables full_form(int64_t size, int64_t longest, int64_t low, int64_t high) {
  Tables tables = plain_form(size);
  AttentionForm& form = tables.form;
  const int64_t half = size / 2, distances = 2 * longest - 1, buckets = 32;
  tables.cos = draw<float>(longest * half);
  tables.sin = draw<float>(longest * half);
  tables.bias = draw<float>(distances);
  tables.relative_keys = draw<float>(buckets * size);
  tables.relative_queries = draw<float>(buckets * size);
  tables.query_norm = draw<float>(size);
  tables.key_norm = draw<float>(size);
  for (int64_t d = 1 - longest; d < longest; ++d) {
    tables.buckets.push_back(static_cast<int32_t>(std::clamp<int64_t>(d + 12, 0, 23)));
  }
  form.low = low;
  form.high = high;
  form.cos = tables.cos.data();
  form.sin = tables.sin.data();
  form.rotated = 2 * half;
  form.bias = tables.bias.data() + longest - 1;
  form.relative_keys = tables.relative_keys.data();
  form.relative_queries = tables.relative_queries.data();
  form.buckets = tables.buckets.data() + longest - 1;
  form.num_buckets = buckets;
  form.query_norm = tables.query_norm.data();
  form.key_norm = tables.key_norm.data();
  form.query_eps = form.key_eps = 1e-5f;
  return tables;
}

// A head of a token as the form has it at a place.
template <typename scalar_t>
std::vector<double> prepared(
    const AttentionForm& form, const float* norm, int64_t place, int64_t size, const scalar_t* x) {
  std::vector<double> out(size);
  double squares = 0.0;
  for (int64_t i = 0; i < size; ++i) {
    out[i] = to_float(x[i]);
    squares += out[i] * out[i] / size;
  }
  for (int64_t i = 0; norm && i < size; ++i) out[i] *= norm[i] / std::sqrt(squares + 1e-5);
  const int64_t half = form.rotated / 2;
  for (int64_t i = 0; i < half; ++i) {
    const double a = out[i], b = out[half + i];
    const double cos = form.cos[place * half + i], sin = form.sin[place * half + i];
    out[i] = a * cos - b * sin;
    out[half + i] = b * cos + a * sin;
  }
  return out;
}

// Attention of one head that lies in the middle of wider rows.
template <typename scalar_t>
void check_attention(
    const CpuKernels& table,
    const Kernels<scalar_t>& kernels,
    AttentionForm form,
    int64_t size,
    int64_t queries,
    int64_t keys,
    double tolerance) {
  form.first_place = keys - queries;
  const int64_t stride = size + 3;
  // The last token ends with its head: nothing may be read behind it.
  const auto query = draw<scalar_t>((queries - 1) * stride + size);
  const auto key = draw<scalar_t>((keys - 1) * stride + size);
  const auto value = draw<scalar_t>((keys - 1) * stride + size);
  std::vector<scalar_t> out(queries * size);
  std::vector<float> scratch(table.attention_scratch(queries, size, form.buckets != nullptr));
  kernels.attend_head(
      {query.data(),
       key.data(),
       value.data(),
       stride,
       stride,
       stride,
       size,
       queries,
       keys,
       size,
       form},
      out.data(),
      scratch.data());
  for (int64_t q = 0; q < queries; ++q) {
    const int64_t place = form.first_place + q;
    const auto left = prepared(form, form.query_norm, place, size, query.data() + q * stride);
    std::vector<double> scores(keys);
    double highest = -1e300, total = 0.0;
    for (int64_t k = 0; k < keys; ++k) {
      const auto right = prepared(form, form.key_norm, k, size, key.data() + k * stride);
      const int64_t distance = place - k;
      double score = 0.0;
      for (int64_t i = 0; i < size; ++i) {
        score += left[i] * right[i];
        if (form.buckets) {
          const int32_t bucket = form.buckets[distance];
          score += left[i] * form.relative_keys[bucket * size + i];
          score += right[i] * form.relative_queries[i * form.num_buckets + bucket];
        }
      }
      score *= form.scale;
      if (form.bias) score += form.bias[distance];
      scores[k] = distance < form.low || distance > form.high ? -1e300 : score;
      highest = std::max(highest, scores[k]);
    }
    for (double& score : scores) total += score = std::exp(score - highest);
    for (int64_t i = 0; i < size; ++i) {
      double expected = 0.0;
      for (int64_t k = 0; k < keys; ++k) {
        expected += scores[k] / total * to_float(value[k * stride + i]);
      }
      expect_near(to_float(out[q * size + i]), expected, tolerance, "attend_head");
    }
  }
}

template <typename scalar_t>
void test_attention(const CpuKernels& table, const Kernels<scalar_t>& kernels, double tolerance) {
  for (const int64_t size : {1, 5, 16, 32, 64, 80, 128}) {
    for (const auto& [queries, keys] :
         {std::pair<int64_t, int64_t>{1, 1}, {1, 70}, {7, 7}, {33, 33}, {65, 65}, {130, 130}}) {
      const Tables plain = plain_form(size);
      check_attention(table, kernels, plain.form, size, queries, keys, tolerance);
      for (const auto& [low, high] :
           {std::pair<int64_t, int64_t>{-kFar, kFar}, {0, kFar}, {-5, 5}, {0, 40}, {-70, 3}}) {
        const Tables full = full_form(size, keys, low, high);
        check_attention(table, kernels, full.form, size, queries, keys, 4 * tolerance);
      }
    }
  }
}

template <typename scalar_t>
void test_places(const Kernels<scalar_t>& kernels, double tolerance) {
  for (const int64_t size : {2, 16, 34, 64}) {
    const int64_t heads = 3, place = 6;
    const Tables tables = full_form(size, 7, -kFar, kFar);
    const auto x = draw<scalar_t>(heads * size);
    std::vector<float> scratch(size);
    for (const float* norm : {tables.form.key_norm, static_cast<const float*>(nullptr)}) {
      auto out = x;  // in place
      kernels.place_heads(
          out.data(), tables.form, norm, 1e-5f, place, heads, size, out.data(), scratch.data());
      for (int64_t head = 0; head < heads; ++head) {
        const auto expected = prepared(tables.form, norm, place, size, x.data() + head * size);
        for (int64_t i = 0; i < size; ++i) {
          const double bound = tolerance * (1 + std::abs(expected[i]));
          expect_near(to_float(out[head * size + i]), expected[i], bound, "place_heads");
        }
      }
    }
  }
}

}  // namespace consistentee
