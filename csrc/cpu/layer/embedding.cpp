// embed: layer normalisation of the sum of three embeddings, in one pass over the tokens.

#include <algorithm>
#include <vector>

#include "cpu/batch.h"
#include "cpu/layer/layer.h"

namespace consistentee {
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

Tensor Embedding::operator()(
    const Tensor& ids, const Tensor& type_ids, const Tensor& position_ids) const {
  if (ids.dim() != 1) fail("ids: expected a tensor of shape [T]");
  const ScalarType dtype = words.scalar_type();
  const int64_t tokens = ids.size(0), size = check_table(words, ids, "ids", tokens);
  if (types) {
    check_table(*types, type_ids, "types", tokens);
    check_tensor(*types, "type_table", dtype, {types->size(0), size});
  }
  if (positions) {
    check_table(*positions, position_ids, "positions", tokens);
    check_tensor(*positions, "position_table", dtype, {positions->size(0), size});
  }
  const bool norm_of_sum = norm && !(product && product_first);
  if (norm_of_sum) {
    check_tensor(norm->weight, "weight", dtype, {size});
    if (norm->bias) check_tensor(*norm->bias, "bias", dtype, {size});
  }
  Tensor out = new_tokens(words, tokens, size);
  dispatch(words, "word_table", [&](const auto& kernels, auto element) {
    using scalar_t = decltype(element);
    const Embeddings<scalar_t> tables{
        data<scalar_t>(words),
        positions ? data<scalar_t>(*positions) : nullptr,
        types ? data<scalar_t>(*types) : nullptr,
        data<int64_t>(ids),
        data<int64_t>(position_ids),
        data<int64_t>(type_ids),
    };
    LayerNorm<scalar_t> weights{nullptr, nullptr, size, 0.0f};
    if (norm_of_sum) weights = layer_norm<scalar_t>(norm->weight, norm->bias, size, norm->eps);
    torch::stable::parallel_for(0, tokens, norm_grain(size), [&](int64_t begin, int64_t end) {
      std::vector<float> scratch(size);
      scalar_t* target = mutable_data<scalar_t>(out);
      kernels.embed_tokens(tables, weights, target, begin, end, scratch.data());
    });
  });
  if (!product) return out;
  out = (*product)(out);
  return norm && product_first ? normed(out, *norm) : out;
}

namespace {

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
  const Embedding embedding{
      word_table, type_table, position_table, Norm{weight, bias, eps}, std::nullopt, false};
  return embedding(ids, types, positions);
}

}  // namespace
}  // namespace consistentee

STABLE_TORCH_LIBRARY_IMPL(consistentee, CPU, m) {
  m.impl("embed", TORCH_BOX(&consistentee::embed));
}
