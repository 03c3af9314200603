// decode_step: exited tokens leave the remaining layers; those of earlier steps that have left get the
// keys and values that a layer needs in the product of the token that needs them.

#include "cpu/cache/step.h"

#include <cmath>
#include <memory>
#include <numeric>

#include "cpu/engine.h"

namespace consistentee {
namespace {

Tokens tokens_of(
    const SlotCache& cache,
    int64_t segment,
    const std::vector<int64_t>& slots,
    const std::vector<int64_t>& positions) {
  const int64_t* filled = data<int64_t>(cache.filled) + segment * cache.filled.size(1);
  const int64_t room = cache.num_positions();
  Tokens tokens{slots, {}, positions, static_cast<int64_t>(slots.size())};
  for (size_t i = 0; i < slots.size(); ++i) tokens.rows.push_back(slots[i] * room + positions[i]);
  for (size_t i = 0; i < slots.size(); ++i) {
    for (int64_t place = filled[slots[i]]; place < positions[i]; ++place) {
      tokens.rows.push_back(slots[i] * room + place);
      tokens.places.push_back(place);
    }
  }
  return tokens;
}

// Attention's context [present, heads * d] of the queries in a product, whose keys and values are in a
// layer of the cache.
Tensor attend_in_cache(
    const Tensor& product,
    const Attention& attention,
    const Tokens& tokens,
    const SlotCache& cache,
    int64_t layer) {
  const Form& form = attention.form;
  const int64_t size = attention.head_size, heads = attention.num_heads;
  const int64_t kv_heads = form.num_kv_heads, shared = heads / kv_heads;
  const int64_t of_queries = heads * size, of_keys = kv_heads * size;
  const int64_t width = of_queries + 2 * of_keys, first = layer * cache.keys.size(1);
  const Tensor context = new_tokens(product, tokens.present, of_queries);
  dispatch(product, "product", [&](const auto& kernels, auto element) {
    using scalar_t = decltype(element);
    const scalar_t* const all = data<scalar_t>(product);
    const scalar_t* const keys = data<scalar_t>(cache.keys) + first * of_keys;
    const scalar_t* const values = data<scalar_t>(cache.values) + first * of_keys;
    // Norms and turns are done, and a window is where the keys begin.
    AttentionForm plain{};
    plain.scale = static_cast<float>(form.scale);
    plain.low = -kFar;
    plain.high = kFar;
    const int64_t memory = cpu_kernels().attention_scratch(shared, size, false);
    torch::stable::parallel_for(0, tokens.present * kv_heads, 1, [&](int64_t begin, int64_t end) {
      const std::unique_ptr<float[]> scratch(new float[memory]);
      for (int64_t task = begin; task < end; ++task) {
        const int64_t token = task / kv_heads, head = task % kv_heads;
        const int64_t behind = tokens.places[token] + 1;
        const int64_t seen = form.high ? std::min(behind, *form.high + 1) : behind;
        const int64_t from = (tokens.rows[token] + 1 - seen) * of_keys + head * size;
        const int64_t column = head * shared * size;
        // The heads that share keys are the queries of one task.
        const AttentionHead<scalar_t> one{
            all + token * width + column,
            keys + from,
            values + from,
            size,
            of_keys,
            of_keys,
            size,
            shared,
            seen,
            size,
            plain};
        kernels.attend_head(
            one, mutable_data<scalar_t>(context) + token * of_queries + column, scratch.get());
      }
    });
  });
  return context;
}

Tensor run_block(
    const Block& block,
    const Tensor& all,
    const Tokens& tokens,
    const SlotCache& cache,
    int64_t layer) {
  const Tensor product =
      block.attention.query(block.attention_norm ? normed(all, *block.attention_norm) : all);
  place_tokens(product, block.attention, tokens, cache, layer);
  const Tensor context = attend_in_cache(product, block.attention, tokens, cache, layer);
  return block.behind_attention(block.attention.out(context), first_rows(all, tokens.present));
}

std::vector<float> floats_of(const Tensor& tensor, int64_t row) {
  std::vector<float> out(tensor.size(1));
  dispatch_dtype(tensor, "state", [&](auto element) {
    const auto* source = data<decltype(element)>(tensor) + row * tensor.size(1);
    for (size_t i = 0; i < out.size(); ++i) out[i] = to_float(source[i]);
  });
  return out;
}

void check_step(
    const Engine& engine,
    const Tensor& tokens,
    const Tensor& slots,
    const Tensor& positions,
    const SlotCache& cache,
    const Tensor& thresholds) {
  const int64_t exits = static_cast<int64_t>(engine.token_exits().size());
  check_tensor(thresholds, "thresholds", ScalarType::Float, {exits});
  check_cache(engine, cache);
  const int64_t num_slots = cache.num_slots();
  const int64_t count = slots.numel(), room = cache.num_positions();
  check_tensor(tokens, "tokens", ScalarType::Long, {count});
  check_tensor(slots, "slots", ScalarType::Long, {count});
  check_tensor(positions, "positions", ScalarType::Long, {count});
  int64_t longest = 1;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t slot = data<int64_t>(slots)[i];
    longest = std::max(longest, data<int64_t>(positions)[i] + 1);
    check_number(slot, "slots", num_slots);
    check_number(data<int64_t>(positions)[i], "positions", room);
    for (int64_t segment = 0; segment <= exits; ++segment) {
      check_number(data<int64_t>(cache.filled)[segment * num_slots + slot], "filled", room + 1);
    }
  }
  check_blocks(engine, longest);
}

}  // namespace

Tensor TokenExit::translate(const Tensor& hidden) const {
  if (!down) return hidden;
  const Tensor out = (*up)((*down)(hidden));
  add(out, hidden);
  return out;
}

float TokenExit::probability(const std::vector<float>& state) const {
  std::vector<float> features = state;
  const auto product = [&](const float* weight, float bias) {
    return std::inner_product(features.begin(), features.end(), weight, bias);
  };
  if (dense_weight) {
    std::vector<float> inner(dense_bias->numel());
    for (size_t i = 0; i < inner.size(); ++i) {
      const float x =
          product(data<float>(*dense_weight) + i * features.size(), data<float>(*dense_bias)[i]);
      inner[i] = 0.5f * x * (1.0f + std::erf(x * 0.70710678f));  // gelu
    }
    features = std::move(inner);
  }
  return 1.0f / (1.0f + std::exp(-product(data<float>(score_weight), *data<float>(score_bias))));
}

std::pair<Tensor, Tensor> decode_step(
    const Engine& engine,
    const Tensor& tokens,
    const Tensor& slot_ids,
    const Tensor& position_ids,
    const SlotCache& cache,
    const Tensor& thresholds,
    const Norm& last_norm) {
  check_step(engine, tokens, slot_ids, position_ids, cache, thresholds);
  const int64_t count = slot_ids.numel(), num_layers = engine.num_layers();
  const auto& exits = engine.token_exits();
  engine.start();
  const int64_t* slot = data<int64_t>(slot_ids);
  const int64_t* position = data<int64_t>(position_ids);
  std::vector<int64_t> slots(slot, slot + count), positions(position, position + count);
  std::vector<int64_t> stayed(count);  // the numbers of the tokens that have not left
  std::iota(stayed.begin(), stayed.end(), 0);
  Tensor hidden = engine.embed(tokens, tokens, tokens);
  const Tensor states = torch::stable::empty_like(hidden);
  const Tensor exit_layers = torch::stable::empty_like(slot_ids);
  std::fill_n(mutable_data<int64_t>(exit_layers), count, num_layers);
  int64_t layer = 0;
  for (size_t segment = 0; segment <= exits.size() && !stayed.empty(); ++segment) {
    const Tokens here = tokens_of(cache, static_cast<int64_t>(segment), slots, positions);
    int64_t* filled =
        mutable_data<int64_t>(cache.filled) + static_cast<int64_t>(segment) * cache.filled.size(1);
    for (size_t i = 0; i < slots.size(); ++i) filled[slots[i]] = positions[i] + 1;
    const bool holds = here.rows.size() > slots.size();
    Tensor all = holds ? gather_rows(cache.states, here.rows) : hidden;
    const bool last = segment == exits.size();
    for (; layer < (last ? num_layers : exits[segment].layer); ++layer) {
      if (holds) {
        for (int64_t i = 0; i < here.present; ++i) copy_row(hidden, i, all, i);
      } else {
        all = hidden;
      }
      hidden = run_block(engine.blocks()[layer], all, here, cache, layer);
    }
    const float threshold = last ? 1.0f : data<float>(thresholds)[segment];
    if (threshold == 1.0f) continue;  // no probability is above it
    const Tensor state = normed(exits[segment].translate(hidden), last_norm);
    std::vector<int64_t> kept;
    for (int64_t i = 0; i < here.present; ++i) {
      if (exits[segment].probability(floats_of(state, i)) > threshold) {
        copy_row(state, i, states, stayed[i]);
        copy_row(hidden, i, cache.states, here.rows[i]);
        mutable_data<int64_t>(exit_layers)[stayed[i]] = layer;
      } else {
        kept.push_back(i);
      }
    }
    if (kept.size() == stayed.size()) continue;
    hidden = gather_rows(hidden, kept);
    for (size_t i = 0; i < kept.size(); ++i) {
      stayed[i] = stayed[kept[i]];
      slots[i] = slots[kept[i]];
      positions[i] = positions[kept[i]];
    }
    for (auto* numbers : {&stayed, &slots, &positions}) numbers->resize(kept.size());
  }
  if (!stayed.empty()) {
    const Tensor state = normed(hidden, last_norm);
    for (size_t i = 0; i < stayed.size(); ++i) {
      copy_row(state, static_cast<int64_t>(i), states, stayed[i]);
    }
  }
  return {states, exit_layers};
}

}  // namespace consistentee
