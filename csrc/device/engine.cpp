#include "device/engine.h"

#include <utility>

#include "device/call.h"

namespace consistentee::device {
namespace {

void cut(Batch& batch, const Count& count) {
  batch.hidden = first_of(batch.hidden, count.tokens);
  batch.cu_seqlens = first_of(batch.cu_seqlens, count.rows + 1);
  batch.row_ids = first_of(batch.row_ids, count.rows);
}

}  // namespace

Engine::Engine(RemovalCosts costs) : costs_(std::move(costs)) {}

void Engine::check_building() const {
  // A pass reads blocks and exits without a lock.
  if (has_run_) fail("engine: expected one that has not run yet");
}

void Engine::add_block(Block block) {
  check_building();
  blocks_.push_back(std::move(block));
}

void Engine::add_exit(Exit exit) {
  check_building();
  const int64_t least = exits_.empty() ? 1 : exits_.back().layer + 1;
  if (exit.layer < least || exit.layer > num_layers()) {
    fail(
        "layer: expected a number from " + std::to_string(least) + " to " +
        std::to_string(num_layers()));
  }
  exits_.push_back(std::move(exit));
}

Batch Engine::advance(
    Batch batch, int64_t first, int64_t last, const Pass& pass, Counts& counts) const {
  has_run_ = true;
  size_t next = 0;
  while (next < exits_.size() && exits_[next].layer <= first) ++next;
  // Those that have not left, as far as the host knows.
  Count known{batch.rows(), batch.tokens()};
  for (int64_t layer = first + 1; layer <= last; ++layer) {
    const Block& block = blocks_[layer - 1];
    if (next == exits_.size() || exits_[next].layer != layer) {
      block(batch, pass.one_a_row);
      continue;
    }
    const Tensor added = block.before_last_norm(batch, pass.one_a_row);
    const bool ends = layer == num_layers();  // all rows leave
    // While the layer runs.
    if (!pass.eager && !ends && counts.made()) known = counts.read(counts.made());
    if (known.rows == 0) break;
    const int64_t next_layer = next + 1 < exits_.size() ? exits_[next + 1].layer : last + 1;
    // What is returned holds the rows alone that are left.
    const bool removes = !ends && (pass.eager || next_layer > last ||
                                   costs_.pays(batch.tokens(), known.tokens, next_layer - layer));
    run_exit(next++, batch, added, removes, pass, counts);
    if (ends) {
      cut(batch, {0, 0});
      return batch;
    }
    counts.mark();
    if (pass.eager) known = counts.read(counts.made());
    if (removes) cut(batch, known);
    if (known.rows == 0) break;
  }
  if (counts.made()) cut(batch, counts.read(counts.made()));
  return batch;
}

void Engine::run_exit(
    size_t number,
    Batch& batch,
    const Tensor& added,
    bool removes,
    const Pass& pass,
    const Counts& counts) const {
  const Exit& exit = exits_[number];
  const Norm& norm = blocks_[exit.layer - 1].mlp_norm;
  const Tensor pooled = call(
      "consistentee::add_norm_pool_",
      added,
      batch.hidden,
      norm.weight,
      norm.bias,
      norm.eps,
      batch.cu_seqlens,
      batch.longest,
      exit.pooling,
      pass.tickets,
      std::make_optional(batch.row_ids),
      pass.first_lengths);
  const auto new_like = [&](const Tensor& tensor) {
    return removes ? torch::stable::empty_like(tensor) : tensor;
  };
  Batch out{
      new_like(added),
      new_like(batch.cu_seqlens),
      torch::stable::empty_like(batch.row_ids),
      batch.longest};
  const Tensor& thresholds = pass.thresholds;
  const int64_t row = static_cast<int64_t>(number);
  run("consistentee::exit_step_async",
      added,
      batch.cu_seqlens,
      batch.row_ids,
      exit.pooler(pooled),
      exit.classifier_weight,
      exit.classifier_bias,
      exit.dense_weight,
      exit.dense_bias,
      exit.score_weight,
      exit.score_bias,
      exit.policy_input,
      exit.state_activation,
      exit.multi_label,
      pass.criterion,
      strided(thresholds, row * thresholds.stride(0), {thresholds.size(1)}, {thresholds.stride(1)}),
      exit.layer,
      num_exits() - 1,
      exit.layer == num_layers(),
      pass.results.logits,
      pass.results.exit_layers,
      pass.results.exit_scores,
      pass.results.labels,
      pass.results.streaks,
      pass.tickets,
      counts.next(),
      out.hidden,
      out.cu_seqlens,
      out.row_ids,
      removes);
  batch = std::move(out);
}

}  // namespace consistentee::device
