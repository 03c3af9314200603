// The engine of a device: blocks and exits laid out once, so that a pass is one call whose kernels
// follow each other without Python. All that runs is called by name, so that the same code launches the
// kernels of a GPU and, in tests, those of the CPU.
#pragma once

#include <atomic>
#include <string>
#include <vector>

#include "device/block.h"
#include "device/counts.h"
#include "device/removal.h"

namespace consistentee::device {

struct Exit {
  int64_t layer;        // 1-based
  std::string pooling;  // cls, mean or pair
  Linear pooler;
  // What the exit step reads of a head, as csrc/ops.cpp names it.
  Tensor classifier_weight, classifier_bias;
  std::optional<Tensor> dense_weight, dense_bias, score_weight, score_bias;
  int64_t policy_input, state_activation;
  bool multi_label;
};

struct Results {
  Tensor logits, exit_layers, exit_scores, labels, streaks;
};

struct Pass {
  int64_t criterion;
  Tensor thresholds;                    // [E, N] float32
  std::optional<Tensor> first_lengths;  // [N] int32, where exits compare texts
  Results results;
  Tensor tickets;                   // [B] int32, zeros
  std::optional<Tensor> one_a_row;  // [B + 1] int32: 0, 1, 2, ...
  bool eager;  // the host reads each count at once; else that of the exit before
};

class Engine {
 public:
  explicit Engine(RemovalCosts costs);

  void add_block(Block block);
  void add_exit(Exit exit);

  // The rows that are left behind block `last` - 1, where `batch` came to block `first`.
  Batch advance(Batch batch, int64_t first, int64_t last, const Pass& pass, Counts& counts) const;

  int64_t num_exits() const { return static_cast<int64_t>(exits_.size()); }
  int64_t num_layers() const { return static_cast<int64_t>(blocks_.size()); }

 private:
  void check_building() const;

  // The last norm and the exit of a block whose MLP adds `added`. Rows that leave are removed from the
  // batch, or stay there with the number -1.
  void run_exit(
      size_t number,
      Batch& batch,
      const Tensor& added,
      bool removes,
      const Pass& pass,
      const Counts& counts) const;

  RemovalCosts costs_;
  std::vector<Block> blocks_;
  std::vector<Exit> exits_;
  mutable std::atomic<bool> has_run_{false};
};

}  // namespace consistentee::device
