// add_norm_ and embed: layer normalisation of a sum, in one pass over the tokens.

#include <algorithm>
#include <vector>

#include "cpu/batch.h"

namespace consistentee {
namespace {

// Tokens worth a thread's start: about 32 KiB of floats.
int64_t grain(int64_t hidden_size) { return 1 + 8192 / (hidden_size + 1); }

template <typename scalar_t>
LayerNorm<scalar_t> layer_norm(const Tensor& weight, const Tensor& bias, int64_t size, double eps) {
  return {data<scalar_t>(weight), data<scalar_t>(bias), size, static_cast<float>(eps)};
}

}  // namespace

void add_norm_(
    const Tensor& hidden,
    const Tensor& residual,
    const Tensor& weight,
    const Tensor& bias,
    double eps) {
  check_norm(hidden, residual, weight, bias);
  const int64_t tokens = hidden.size(0), size = hidden.size(1);
  dispatch(hidden, "hidden", [&](const auto& kernels, auto element) {
    using scalar_t = decltype(element);
    const auto norm = layer_norm<scalar_t>(weight, bias, size, eps);
    torch::stable::parallel_for(0, tokens, grain(size), [&](int64_t begin, int64_t end) {
      std::vector<float> scratch(size);
      kernels.add_norm_tokens(
          mutable_data<scalar_t>(hidden),
          data<scalar_t>(residual),
          norm,
          begin,
          end,
          scratch.data());
    });
  });
}

namespace {

// A table [entries, H] and the indices [T] into it, all of them in range.
int64_t check_table(const Tensor& table, const Tensor& ids, const char* name, int64_t tokens) {
  if (table.dim() != 2 || !table.is_contiguous()) {
    fail(std::string(name) + ": expected a contiguous table of shape [entries, H]");
  }
  check_tensor(ids, name, ScalarType::Long, {tokens});
  const int64_t* values = data<int64_t>(ids);
  const int64_t entries = table.size(0);
  if (!std::all_of(values, values + tokens, [&](int64_t id) { return id >= 0 && id < entries; })) {
    fail(std::string(name) + ": expected ids from 0 to " + std::to_string(entries - 1));
  }
  return table.size(1);
}

}  // namespace

Tensor embed(
    const Tensor& ids,
    const Tensor& types,
    const Tensor& positions,
    const Tensor& word_table,
    const Tensor& type_table,
    const Tensor& position_table,
    const Tensor& weight,
    const Tensor& bias,
    double eps) {
  if (ids.dim() != 1) fail("ids: expected a tensor of shape [T]");
  const ScalarType dtype = word_table.scalar_type();
  const int64_t tokens = ids.size(0), size = check_table(word_table, ids, "ids", tokens);
  check_table(type_table, types, "types", tokens);
  check_table(position_table, positions, "positions", tokens);
  check_tensor(type_table, "type_table", dtype, {type_table.size(0), size});
  check_tensor(position_table, "position_table", dtype, {position_table.size(0), size});
  check_tensor(weight, "weight", dtype, {size});
  check_tensor(bias, "bias", dtype, {size});
  Tensor out = new_tokens(word_table, tokens, size);
  dispatch(word_table, "word_table", [&](const auto& kernels, auto element) {
    using scalar_t = decltype(element);
    const Embeddings<scalar_t> tables{
        data<scalar_t>(word_table),
        data<scalar_t>(position_table),
        data<scalar_t>(type_table),
        data<int64_t>(ids),
        data<int64_t>(positions),
        data<int64_t>(types),
    };
    const auto norm = layer_norm<scalar_t>(weight, bias, size, eps);
    torch::stable::parallel_for(0, tokens, grain(size), [&](int64_t begin, int64_t end) {
      std::vector<float> scratch(size);
      kernels.embed_tokens(tables, norm, mutable_data<scalar_t>(out), begin, end, scratch.data());
    });
  });
  return out;
}

}  // namespace consistentee

STABLE_TORCH_LIBRARY_IMPL(consistentee, CPU, m) {
  m.impl("add_norm_", TORCH_BOX(&consistentee::add_norm_));
  m.impl("embed", TORCH_BOX(&consistentee::embed));
}
