// The CPU kernels, one table an instruction set; the library picks one when it is loaded.
#pragma once

#include "kernels/exit_head.h"
#include "kernels/scalar.h"

namespace consistentee {

// Rows a kernel works on together: each weight is read once for all of them.
constexpr int64_t kRowBlock = 4;

constexpr int64_t kFar = int64_t{1} << 40;  // beyond every distance

// How an attention differs from BERT's, for one head of one row; what is null or 0 it does not have.
// consistentee_ext/weights.py says what each does. Tables by distance point to the entry of 0.
struct AttentionForm {
  float scale;                    // of the scores
  int64_t first_place;            // of the first query in its row
  int64_t low, high;              // of query less key; -kFar and kFar bound nothing
  const float* cos;               // [P, rotated / 2]
  const float* sin;               // [P, rotated / 2]
  int64_t rotated;                // numbers of a head that are turned
  const float* bias;              // by distance
  const float* relative_keys;     // [R, head_size]
  const float* relative_queries;  // [head_size, R]
  const int32_t* buckets;         // by distance, rising
  int64_t num_buckets;            // R, a multiple of 16
  const float* query_norm;        // [head_size]
  const float* key_norm;          // [head_size]
  float query_eps, key_eps;
};

// One head of one row: `queries` and `keys` are numbers of tokens, strides are of elements from
// token to token.
template <typename scalar_t>
struct AttentionHead {
  const scalar_t* query;
  const scalar_t* key;
  const scalar_t* value;
  int64_t query_stride, key_stride, value_stride, out_stride;
  int64_t queries, keys;
  int64_t head_size;
  AttentionForm form;
};

template <typename scalar_t>
struct LayerNorm {
  const scalar_t* weight;  // [H]
  const scalar_t* bias;    // [H]; null: a root-mean-square norm
  int64_t hidden_size;
  float eps;
};

// Tables [entries, H] and the entry of each of T tokens in them; positions and types may be null.
template <typename scalar_t>
struct Embeddings {
  const scalar_t* words;
  const scalar_t* positions;
  const scalar_t* types;
  const int64_t* ids;
  const int64_t* position_ids;
  const int64_t* type_ids;
};

// Of a product.
enum class Activation { kNone, kGelu, kGeluTanh, kRelu, kSilu, kTanh };

// Outputs and rows that a product of few rows takes together: its sums stay in a first-level cache.
constexpr int64_t kOutputTile = 32, kRowTile = 32;
constexpr int64_t kTileGroup = 16;  // rows of a tile

// out [rows, outputs] = f(x W^T + b): x [rows, inputs], weight [outputs, inputs], bias [outputs] or
// null.
template <typename scalar_t>
struct RowsProduct {
  const scalar_t* x;
  int64_t rows, inputs, outputs;
  const scalar_t* weight;
  const scalar_t* bias;
  Activation activation;
  scalar_t* out;
};

// A token's numbers are scale * (integer - levels - 1) + centre, with integers from 0 to 2 levels + 1.
struct TokenScale {
  float scale, centre;
};

// What the outputs of a product of integers, each already times the scale of its weights, still lack.
struct OutputScale {
  const float* sums;  // of an output's weights
  const float* bias;
  Activation activation;
};

template <typename scalar_t>
struct Kernels {
  // Decides rows [begin, end) of pooled [B, H]; keep[row] is 1 where the row stays. `scratch` holds
  // exit_scratch(head) floats.
  void (*exit_rows)(
      const ExitHead& head,
      const ExitDecision& decision,
      const scalar_t* pooled,
      const int64_t* row_ids,
      int64_t begin,
      int64_t end,
      const ExitResults& results,
      uint8_t* keep,
      float* scratch);
  // Means over the tokens of rows [begin, end): [T, H] to out [B, H]. `scratch` holds H floats.
  void (*mean_rows)(
      const scalar_t* hidden,
      const int32_t* cu_seqlens,
      int64_t hidden_size,
      int64_t begin,
      int64_t end,
      scalar_t* out,
      float* scratch);
  // (u, v, |u - v|, u * v) of rows [begin, end): texts [2B, H] to out [B, 4H]. A row whose second text
  // is empty, by offsets [2B+1], has its first one twice.
  void (*compare_rows)(
      const scalar_t* texts,
      const int32_t* offsets,
      int64_t hidden_size,
      int64_t begin,
      int64_t end,
      scalar_t* out);
  // softmax(scale * Q K^T + ...) V; `scratch` holds attention_scratch(queries, head_size, relative)
  // floats, `relative` where the form has buckets.
  void (*attend_head)(const AttentionHead<scalar_t>& head, scalar_t* out, float* scratch);
  // Heads [heads * size] of the token at a place of its row, x to out, each normed where there is a
  // norm and turned as the form says. `scratch` holds size floats.
  void (*place_heads)(
      const scalar_t* x,
      const AttentionForm& form,
      const float* norm,
      float eps,
      int64_t place,
      int64_t heads,
      int64_t size,
      scalar_t* out,
      float* scratch);
  // hidden = norm(hidden + residual) for tokens [begin, end) of [T, H]. `scratch` holds H floats.
  void (*add_norm_tokens)(
      scalar_t* hidden,
      const scalar_t* residual,
      const LayerNorm<scalar_t>& norm,
      int64_t begin,
      int64_t end,
      float* scratch);
  // out = norm(x) for tokens [begin, end) of [T, H]. `scratch` holds H floats.
  void (*norm_tokens)(
      const scalar_t* x,
      const LayerNorm<scalar_t>& norm,
      scalar_t* out,
      int64_t begin,
      int64_t end,
      float* scratch);
  // target += source for elements [begin, end).
  void (*add_elements)(scalar_t* target, const scalar_t* source, int64_t begin, int64_t end);
  // target *= source for elements [begin, end).
  void (*multiply_elements)(scalar_t* target, const scalar_t* source, int64_t begin, int64_t end);
  // out = norm(word + type + position) for tokens [begin, end) of [T, H], without norm where it has no
  // weight. `scratch` holds H floats.
  void (*embed_tokens)(
      const Embeddings<scalar_t>& tables,
      const LayerNorm<scalar_t>& norm,
      scalar_t* out,
      int64_t begin,
      int64_t end,
      float* scratch);
  // x [T, size], of tokens [begin, end), as integers: the token's least number is 0, its largest
  // 2 levels + 1. The scale is NaN where a number of the token is not finite.
  void (*quantize_tokens)(
      const scalar_t* x,
      int64_t size,
      int64_t levels,
      uint8_t* out,
      TokenScale* scales,
      int64_t begin,
      int64_t end);
  // x = f(scale x + centre sums + bias) for tokens [begin, end) of [T, size].
  void (*finish_tokens)(
      scalar_t* x,
      const TokenScale* scales,
      const OutputScale& output,
      int64_t size,
      int64_t begin,
      int64_t end);
  // Both in one: what finish_tokens would make of x, as integers; x stays as it is. `scratch` holds
  // `size` floats.
  void (*requantize_tokens)(
      const scalar_t* x,
      const TokenScale* scales,
      const OutputScale& output,
      int64_t size,
      int64_t levels,
      uint8_t* out,
      TokenScale* out_scales,
      int64_t begin,
      int64_t end,
      float* scratch);
  // Outputs [32 begin, 32 end) of a product.
  void (*multiply_few_rows)(const RowsProduct<scalar_t>& product, int64_t begin, int64_t end);
};

// A product of few rows in bfloat16 by tiles, of inputs and outputs in multiples of 32; null where the
// instruction set has none. A processor may lack them all the same.
struct TileKernels {
  // Groups [begin, end) of 16 rows of x [rows, inputs], as the product reads them, to `out`, in which
  // `rows` is rounded up to whole groups.
  void (*lay_out)(
      const BFloat16* x, int64_t rows, int64_t inputs, int64_t begin, int64_t end, BFloat16* out);
  // Outputs [32 begin, 32 end).
  void (*multiply)(
      const RowsProduct<BFloat16>& product, const BFloat16* laid_out, int64_t begin, int64_t end);
};

struct CpuKernels {
  const char* level;
  int64_t (*attention_scratch)(int64_t queries, int64_t head_size, bool relative);
  Kernels<float> f32;
  Kernels<BFloat16> bf16;
  Kernels<Half> f16;
  TileKernels tiles;
};

inline int64_t exit_scratch(const ExitHead& head) {
  return kRowBlock * (head.hidden_size + head.classes + head.policy_size + kNumStatistics);
}

const CpuKernels& cpu_kernels();

}  // namespace consistentee
