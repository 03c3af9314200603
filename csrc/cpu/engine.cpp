#include "cpu/engine.h"

#include <utility>

namespace consistentee {

Tensor Exit::product(const PackedRows& batch, const std::optional<Tensor>& first_lengths) const {
  const auto& [hidden, cu_seqlens, row_ids] = batch;
  if (pooling == Pooling::kPair) {
    if (!first_lengths) fail("first_lengths: expected them where an exit compares texts");
    const Tensor offsets = segment_offsets(cu_seqlens, row_ids, *first_lengths);
    const Tensor texts = mean_pool(hidden, offsets);
    return (*pooler)(compare_texts(norm ? normed(texts, *norm) : texts, offsets));
  }
  Tensor source = norm && norms_tokens ? normed(hidden, *norm) : hidden;
  if (pooler && pools_states) source = (*pooler)(source);
  Tensor pooled =
      pooling == Pooling::kMean
          ? mean_pool(source, cu_seqlens)
          : one_token(check_batch(source, cu_seqlens), source, pooling == Pooling::kLast);
  if (norm && !norms_tokens) pooled = normed(pooled, *norm);
  if (pooler && !pools_states) pooled = (*pooler)(pooled);
  return state_norm ? normed(pooled, *state_norm) : pooled;
}

Engine::Engine(Embedding embedding, int64_t hidden_size)
    : embedding_(std::move(embedding)), hidden_size_(hidden_size) {
  if (embedding_.words.dim() != 2) fail("word_table: expected a table of shape [entries, H]");
}

void Engine::check_building() const {
  // A pass reads blocks and exits without a lock.
  if (has_run_) fail("engine: expected one that has not run yet");
}

void Engine::add_block(Block block) {
  check_building();
  if (!blocks_.empty() && blocks_.back().attention.key_value) {
    fail("key_value: expected it in the last block alone");
  }
  blocks_.push_back(std::move(block));
}

void Engine::add_exit(Exit exit) {
  check_building();
  if (exit.layer < 1 || exit.layer > num_layers()) {
    fail("layer: expected a number from 1 to " + std::to_string(num_layers()));
  }
  if (!exits_.empty() && exits_.back().layer >= exit.layer) {
    fail("layer: expected more than " + std::to_string(exits_.back().layer));
  }
  if (exit.pooling == Pooling::kPair && !exit.pooler)
    fail("pooler: expected one with pooling pair");
  const Attention& attention = blocks_[exit.layer - 1].attention;
  const Pooling alone = attention.form.last_queries ? Pooling::kLast : Pooling::kFirst;
  if (attention.key_value && exit.pooling != alone) {
    fail("pooling: expected cls or last behind a block that computes first or last tokens alone");
  }
  exits_.push_back(std::move(exit));
}

void Engine::add_token_exit(TokenExit exit) {
  check_building();
  const int64_t least = token_exits_.empty() ? 1 : token_exits_.back().layer + 1;
  if (exit.layer < least || exit.layer >= num_layers()) {
    fail("layer: expected a number from " + std::to_string(least) + ", below the last layer");
  }
  token_exits_.push_back(std::move(exit));
}

Tensor Engine::embed(const Tensor& ids, const Tensor& types, const Tensor& positions) const {
  return embedding_(ids, types, positions);
}

void Engine::check_range(int64_t first, int64_t last) const {
  if (first < 0 || first >= last || last > num_layers()) {
    fail("first, last: expected 0 <= first < last <= " + std::to_string(num_layers()));
  }
}

PackedRows Engine::advance(
    PackedRows batch,
    int64_t first,
    int64_t last,
    const PassDecision& decision,
    const ExitResults& results,
    int64_t all_rows,
    int64_t classes) const {
  start();
  const int64_t num_exits = static_cast<int64_t>(exits_.size());
  const Tensor& thresholds = decision.thresholds;
  if (thresholds.dim() != 2 || thresholds.size(0) != num_exits) {
    fail("thresholds: expected shape [" + std::to_string(num_exits) + ", N]");
  }
  const int64_t stride = check_threshold_stride(thresholds, all_rows);
  for (const Exit& exit : exits_) check_decides(exit.head, decision.criterion);
  auto& [hidden, cu_seqlens, row_ids] = batch;
  size_t next = 0;
  while (next < exits_.size() && exits_[next].layer <= first) ++next;
  for (int64_t layer = first + 1; layer <= last; ++layer) {
    if (row_ids.numel() == 0) break;
    std::tie(hidden, cu_seqlens) = blocks_[layer - 1](hidden, cu_seqlens);
    if (next == exits_.size() || exits_[next].layer != layer) continue;

    const Exit& exit = exits_[next];
    if (exit.head.classes != classes) {
      fail("logits: expected " + std::to_string(exit.head.classes) + " columns");
    }
    const ExitDecision how{
        decision.criterion,
        data<float>(thresholds) + static_cast<int64_t>(next) * thresholds.stride(0),
        stride,
        layer,
        num_exits - 1,
        layer == num_layers()};
    ++next;
    const Batch rows = check_batch(hidden, cu_seqlens);
    const Tensor pooled = exit.product(batch, decision.first_lengths);
    auto survivors = exit_rows(rows, hidden, row_ids, pooled, exit.head, how, results);
    if (survivors) batch = std::move(*survivors);
  }
  return batch;
}

}  // namespace consistentee
