// Layer normalisation of a range of tokens, and sums: one that is normalised is not written to memory.
#pragma once

#include <cmath>

#include "kernels/cpu/table.h"
#include "kernels/scalar.h"

namespace consistentee::CONSISTENTEE_SIMD {
namespace {

// out = x / sqrt(mean(x^2) + eps) * weight over H elements; statistics in float32.
template <typename scalar_t>
void normalize_rms(const float* x, const LayerNorm<scalar_t>& norm, scalar_t* out) {
  const int64_t size = norm.hidden_size;
  float squares = 0.0f;
#pragma omp simd reduction(+ : squares)
  for (int64_t h = 0; h < size; ++h) squares += x[h] * x[h];
  const float scale = 1.0f / std::sqrt(squares / static_cast<float>(size) + norm.eps);
  const scalar_t* weight = norm.weight;
#pragma omp simd
  for (int64_t h = 0; h < size; ++h) store(out + h, x[h] * scale * to_float(weight[h]));
}

// out = (x - mean) / sqrt(variance + eps) * weight + bias over H elements; statistics in float32.
template <typename scalar_t>
void normalize(const float* x, const LayerNorm<scalar_t>& norm, scalar_t* out) {
  if (!norm.bias) return normalize_rms(x, norm, out);
  const int64_t size = norm.hidden_size;
  float sum = 0.0f, squares = 0.0f;
#pragma omp simd reduction(+ : sum)
  for (int64_t h = 0; h < size; ++h) sum += x[h];
  const float mean = sum / static_cast<float>(size);
#pragma omp simd reduction(+ : squares)
  for (int64_t h = 0; h < size; ++h) squares += (x[h] - mean) * (x[h] - mean);
  const float scale = 1.0f / std::sqrt(squares / static_cast<float>(size) + norm.eps);
  const scalar_t* weight = norm.weight;
  const scalar_t* bias = norm.bias;
#pragma omp simd
  for (int64_t h = 0; h < size; ++h) {
    store(out + h, (x[h] - mean) * scale * to_float(weight[h]) + to_float(bias[h]));
  }
}

template <typename scalar_t>
void add_norm_tokens(
    scalar_t* hidden,
    const scalar_t* residual,
    const LayerNorm<scalar_t>& norm,
    int64_t begin,
    int64_t end,
    float* scratch) {
  for (int64_t token = begin; token < end; ++token) {
    scalar_t* x = hidden + token * norm.hidden_size;
    const scalar_t* y = residual + token * norm.hidden_size;
#pragma omp simd
    for (int64_t h = 0; h < norm.hidden_size; ++h) scratch[h] = to_float(x[h]) + to_float(y[h]);
    normalize(scratch, norm, x);
  }
}

template <typename scalar_t>
void norm_tokens(
    const scalar_t* x,
    const LayerNorm<scalar_t>& norm,
    scalar_t* out,
    int64_t begin,
    int64_t end,
    float* scratch) {
  const int64_t size = norm.hidden_size;
  for (int64_t token = begin; token < end; ++token) {
    const scalar_t* source = x + token * size;
#pragma omp simd
    for (int64_t h = 0; h < size; ++h) scratch[h] = to_float(source[h]);
    normalize(scratch, norm, out + token * size);
  }
}

template <typename scalar_t>
void add_elements(scalar_t* target, const scalar_t* source, int64_t begin, int64_t end) {
#pragma omp simd
  for (int64_t i = begin; i < end; ++i) {
    store(target + i, to_float(target[i]) + to_float(source[i]));
  }
}

template <typename scalar_t>
void multiply_elements(scalar_t* target, const scalar_t* source, int64_t begin, int64_t end) {
#pragma omp simd
  for (int64_t i = begin; i < end; ++i) {
    store(target + i, to_float(target[i]) * to_float(source[i]));
  }
}

// total [H] += an entry of a table.
template <typename scalar_t>
void add_entry(const scalar_t* table, int64_t entry, int64_t size, float* total) {
  const scalar_t* source = table + entry * size;
#pragma omp simd
  for (int64_t h = 0; h < size; ++h) total[h] += to_float(source[h]);
}

template <typename scalar_t>
void embed_tokens(
    const Embeddings<scalar_t>& tables,
    const LayerNorm<scalar_t>& norm,
    scalar_t* out,
    int64_t begin,
    int64_t end,
    float* scratch) {
  const int64_t size = norm.hidden_size;
  for (int64_t token = begin; token < end; ++token) {
    const scalar_t* word = tables.words + tables.ids[token] * size;
    if (tables.positions && tables.types) {
      const scalar_t* position = tables.positions + tables.position_ids[token] * size;
      const scalar_t* type = tables.types + tables.type_ids[token] * size;
#pragma omp simd
      for (int64_t h = 0; h < size; ++h) {
        scratch[h] = to_float(word[h]) + to_float(type[h]) + to_float(position[h]);
      }
    } else {
#pragma omp simd
      for (int64_t h = 0; h < size; ++h) scratch[h] = to_float(word[h]);
      if (tables.types) add_entry(tables.types, tables.type_ids[token], size, scratch);
      if (tables.positions) add_entry(tables.positions, tables.position_ids[token], size, scratch);
    }
    scalar_t* target = out + token * size;
    if (norm.weight) {
      normalize(scratch, norm, target);
    } else {
#pragma omp simd
      for (int64_t h = 0; h < size; ++h) store(target + h, scratch[h]);
    }
  }
}

}  // namespace
}  // namespace consistentee::CONSISTENTEE_SIMD
