// An engine: embedding, blocks and exits of a model, laid out once, so that a pass is one call. At
// every layer the weights push Python, its objects and the dispatcher's tables out of the caches: in
// a small batch each call from Python, and each tensor handed over, then costs as much as computing a
// token.
#pragma once

#include <atomic>
#include <memory>
#include <vector>

#include "cpu/cache/step.h"
#include "cpu/exit/exit.h"
#include "cpu/layer/layer.h"

namespace consistentee {

enum class Pooling { kFirst, kLast, kMean, kPair };

struct Exit {
  int64_t layer;  // 1-based
  Pooling pooling;
  std::optional<PrepackedLinear> pooler;
  bool pools_states;  // the pooler comes before the pooling
  std::optional<Norm> norm;
  bool norms_tokens;  // the norm comes before the pooling
  std::optional<Norm> state_norm;
  // Copies: a caller's tensor may be moved to other memory, as torch does to share it with a process.
  std::vector<Tensor> weights;
  ExitHead head;  // points into them

  // What the exit step takes as `pooled` [B, H]; `first_lengths` [N] say where the first texts end.
  Tensor product(const PackedRows& batch, const std::optional<Tensor>& first_lengths) const;
};

struct PassDecision {
  Criterion criterion;
  Tensor thresholds;                    // [E, N] float32
  std::optional<Tensor> first_lengths;  // [N] int32, where exits compare texts
};

class Engine {
 public:
  Engine(Embedding embedding, int64_t hidden_size);

  void add_block(Block block);
  void add_exit(Exit exit);
  void add_token_exit(TokenExit exit);

  // [T, H] of the tokens that `pack` gives.
  Tensor embed(const Tensor& ids, const Tensor& types, const Tensor& positions) const;

  void check_range(int64_t first, int64_t last) const;

  // The rows that are left behind block `last` - 1, where `batch` came to block `first`.
  PackedRows advance(
      PackedRows batch,
      int64_t first,
      int64_t last,
      const PassDecision& decision,
      const ExitResults& results,
      int64_t all_rows,
      int64_t classes) const;

  // From now on blocks and exits stay as they are.
  void start() const { has_run_ = true; }

  // For decoding, which runs the blocks with a cache.
  const std::vector<Block>& blocks() const { return blocks_; }
  const std::vector<TokenExit>& token_exits() const { return token_exits_; }

  int64_t hidden_size() const { return hidden_size_; }
  ScalarType dtype() const { return embedding_.words.scalar_type(); }
  int64_t num_layers() const { return static_cast<int64_t>(blocks_.size()); }

 private:
  void check_building() const;

  Embedding embedding_;
  int64_t hidden_size_;
  std::vector<Block> blocks_;
  std::vector<Exit> exits_;
  std::vector<TokenExit> token_exits_;
  mutable std::atomic<bool> has_run_{false};
};

// The engine of a number that engine_create gave; a pass under way keeps it alive.
std::shared_ptr<Engine> find_engine(int64_t number);

}  // namespace consistentee
