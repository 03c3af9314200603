// What steps and prompts share: which tokens run, and where their keys and values go.

#include "cpu/cache/tokens.h"

#include <cstring>

#include "cpu/engine.h"

namespace consistentee {

namespace {

int64_t row_bytes(const Tensor& tensor) { return tensor.size(1) * tensor.element_size(); }

const char* row_of(const Tensor& tensor, int64_t row) {
  return static_cast<const char*>(tensor.const_data_ptr()) + row * row_bytes(tensor);
}

}  // namespace

void copy_row(const Tensor& source, int64_t from, const Tensor& target, int64_t to) {
  char* begin = static_cast<char*>(target.mutable_data_ptr());
  std::memcpy(begin + to * row_bytes(target), row_of(source, from), row_bytes(target));
}

Tensor gather_rows(const Tensor& source, const std::vector<int64_t>& rows) {
  const int64_t count = static_cast<int64_t>(rows.size());
  const Tensor out = new_tokens(source, count, source.size(1));
  for (int64_t i = 0; i < count; ++i) copy_row(source, rows[i], out, i);
  return out;
}

void place_tokens(
    const Tensor& product,
    const Attention& attention,
    const Tokens& tokens,
    const SlotCache& cache,
    int64_t layer) {
  const Form& form = attention.form;
  const int64_t size = attention.head_size, heads = attention.num_heads;
  const int64_t kv_heads = form.num_kv_heads, count = static_cast<int64_t>(tokens.rows.size());
  const int64_t of_queries = heads * size, of_keys = kv_heads * size;
  const int64_t width = of_queries + 2 * of_keys, first = layer * cache.keys.size(1);
  check_tensor(product, "query", cache.keys.scalar_type(), {count, width});
  dispatch(product, "product", [&](const auto& kernels, auto element) {
    using scalar_t = decltype(element);
    scalar_t* const all = mutable_data<scalar_t>(product);
    scalar_t* const keys = mutable_data<scalar_t>(cache.keys) + first * of_keys;
    scalar_t* const values = mutable_data<scalar_t>(cache.values) + first * of_keys;
    const AttentionForm own = form_of(form, 0, size);
    torch::stable::parallel_for(0, count, 4, [&](int64_t begin, int64_t end) {
      std::vector<float> scratch(size);
      for (int64_t token = begin; token < end; ++token) {
        const auto place = [&](scalar_t* x, const float* norm, float eps, int64_t number) {
          const int64_t at = tokens.places[token];
          kernels.place_heads(x, own, norm, eps, at, number, size, x, scratch.data());
        };
        scalar_t* const query = all + token * width;
        scalar_t* const key = query + of_queries;
        if (token < tokens.present) place(query, own.query_norm, own.query_eps, heads);
        place(key, own.key_norm, own.key_eps, kv_heads);
        const int64_t row = tokens.rows[token] * of_keys;
        std::memcpy(keys + row, key, of_keys * sizeof(scalar_t));
        std::memcpy(values + row, key + of_keys, of_keys * sizeof(scalar_t));
      }
    });
  });
}

void check_cache(const Engine& engine, const SlotCache& cache) {
  if (cache.filled.dim() != 2 || cache.filled.size(1) < 1 || cache.keys.dim() != 3) {
    fail("filled, keys: expected shapes [E + 1, N] and [L, N * U, K * d]");
  }
  const int64_t exits = static_cast<int64_t>(engine.token_exits().size());
  const int64_t rows = cache.keys.size(1);
  if (engine.num_layers() == 0) fail("engine: expected one with blocks");
  const Attention& attention = engine.blocks()[0].attention;
  const int64_t of_keys = attention.form.num_kv_heads * attention.head_size;
  check_tensor(cache.filled, "filled", ScalarType::Long, {exits + 1, cache.num_slots()});
  for (const Tensor& held : {cache.keys, cache.values}) {
    check_tensor(held, "keys, values", engine.dtype(), {engine.num_layers(), rows, of_keys});
  }
  check_tensor(cache.states, "states", engine.dtype(), {rows, engine.hidden_size()});
}

void check_blocks(const Engine& engine, int64_t longest) {
  const Attention& first = engine.blocks()[0].attention;
  const int64_t of_keys = first.form.num_kv_heads * first.head_size;
  for (const Block& block : engine.blocks()) {
    const Attention& attention = block.attention;
    const Form& form = attention.form;
    check_form(form, attention.num_heads, attention.head_size, longest);
    if (form.num_kv_heads * attention.head_size != of_keys ||
        attention.num_heads % form.num_kv_heads) {
      fail("num_kv_heads: expected a divisor of num_heads, and keys as large as the first block's");
    }
    const bool causal = form.low == 0 && !form.bias && !form.buckets;
    if (!causal || attention.key_value || !block.norm_first) {
      fail("engine: expected causal blocks that norm first, without terms by distance");
    }
  }
}

}  // namespace consistentee
