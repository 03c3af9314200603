// engine_prefill: packed prompts. Behind the last layer only their last tokens are needed.

#include "cpu/cache/prefill.h"

#include <numeric>

#include "cpu/engine.h"

namespace consistentee {
namespace {

Tokens tokens_of(const int32_t* offsets, const Tensor& slots, const SlotCache& cache) {
  Tokens tokens;
  for (int64_t row = 0; row < slots.numel(); ++row) {
    const int64_t slot = data<int64_t>(slots)[row];
    check_number(slot, "slots", cache.num_slots());
    const int64_t length = offsets[row + 1] - offsets[row];
    if (length < 1 || length > cache.num_positions()) {
      fail("cu_seqlens: expected prompts of 1 to " + std::to_string(cache.num_positions()));
    }
    tokens.slots.push_back(slot);
    for (int64_t place = 0; place < length; ++place) {
      tokens.rows.push_back(slot * cache.num_positions() + place);
      tokens.places.push_back(place);
    }
  }
  tokens.present = offsets[slots.numel()];
  return tokens;
}

}  // namespace

Tensor prefill(
    const Engine& engine,
    const Tensor& ids,
    const Tensor& cu_seqlens,
    const Tensor& slots,
    const SlotCache& cache,
    const Norm& last_norm) {
  check_cache(engine, cache);
  const int64_t rows = slots.numel(), count = ids.numel();
  check_tensor(ids, "tokens", ScalarType::Long, {count});
  check_tensor(slots, "slots", ScalarType::Long, {rows});
  const int32_t* offsets = check_offsets(cu_seqlens, "cu_seqlens", rows, count);
  const Tokens tokens = tokens_of(offsets, slots, cache);
  check_blocks(engine, *std::max_element(tokens.places.begin(), tokens.places.end()) + 1);
  engine.start();
  const Tensor one_each = torch::stable::empty_like(cu_seqlens);
  std::iota(mutable_data<int32_t>(one_each), mutable_data<int32_t>(one_each) + rows + 1, 0);
  std::vector<int64_t> ends(offsets + 1, offsets + rows + 1);
  for (int64_t& end : ends) --end;

  Tensor hidden = engine.embed(ids, ids, ids);
  for (int64_t layer = 0; layer < engine.num_layers(); ++layer) {
    const Block& block = engine.blocks()[layer];
    const Attention& attention = block.attention;
    const int64_t of_queries = attention.num_heads * attention.head_size;
    const int64_t of_keys = attention.form.num_kv_heads * attention.head_size;
    const Tensor product =
        attention.query(block.attention_norm ? normed(hidden, *block.attention_norm) : hidden);
    place_tokens(product, attention, tokens, cache, layer);
    // Norms and turns are done.
    Form form{};
    form.num_kv_heads = attention.form.num_kv_heads;
    form.scale = attention.form.scale;
    form.low = 0;
    form.high = attention.form.high;
    form.last_queries = true;
    const bool last = layer + 1 == engine.num_layers();
    const Product all = Product::of(product);
    const Product queries = last ? Product::of(gather_rows(product, ends)) : all;
    const Operand context =
        attention.out.operand(new_tokens(hidden, last ? rows : count, of_queries));
    attend(
        {queries, 0, of_queries},
        {all, of_queries, of_keys},
        {all, of_queries + of_keys, of_keys},
        last ? one_each : cu_seqlens,
        cu_seqlens,
        attention.num_heads,
        form,
        context);
    const Tensor attended = attention.out.product(context).finished();
    hidden = block.behind_attention(attended, last ? gather_rows(hidden, ends) : hidden);
  }
  return normed(hidden, last_norm);
}

}  // namespace consistentee
