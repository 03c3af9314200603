// classify: all layers and exits of a pass in one call. At every layer the weights push Python, its
// objects and the dispatcher's tables out of the caches: in a small batch each call from Python, and
// each tensor handed over, then costs as much as computing a token.

#include <algorithm>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <vector>

#include "cpu/bert_layer.h"

namespace consistentee {
namespace {

constexpr size_t kTensorsOfLayer = 12;
constexpr size_t kTensorsOfExit = 4;    // pooler and classifier
constexpr size_t kTensorsOfPolicy = 4;  // dense layer and score

std::vector<BertLayer> read_layers(
    const std::vector<Tensor>& tensors,
    int64_t num_heads,
    double eps,
    const std::string& activation,
    const std::string& algorithm) {
  const size_t count = tensors.size() / kTensorsOfLayer, rest = tensors.size() % kTensorsOfLayer;
  if (!count || (rest != 0 && rest != 2)) fail("layers: expected 12 tensors a layer, or 2 more");
  std::vector<BertLayer> layers;
  for (size_t i = 0; i < count; ++i) {
    const Tensor* t = &tensors[i * kTensorsOfLayer];
    layers.push_back(
        {PackedLinear{t[0], t[1]},
         std::nullopt,
         PackedLinear{t[2], t[3]},
         t[4],
         t[5],
         PackedLinear{t[6], t[7], activation, algorithm},
         PackedLinear{t[8], t[9]},
         t[10],
         t[11],
         eps,
         num_heads});
  }
  if (rest) layers.back().key_value = PackedLinear{tensors[tensors.size() - 2], tensors.back()};
  return layers;
}

struct LayerExit {
  int64_t layer;
  PackedLinear pooler;
  // Copies: a caller's tensor may be moved to other memory, as torch does to share it with a process.
  std::vector<Tensor> weights;
  ExitHeadParams head;  // points into them; how the layer decides is set at each pass
};

std::vector<LayerExit> read_exits(
    const std::vector<Tensor>& tensors,
    const std::vector<int64_t>& layers,
    int64_t num_layers,
    int64_t hidden_size,
    int64_t policy_input) {
  const bool rise =
      std::adjacent_find(layers.begin(), layers.end(), std::greater_equal<>()) == layers.end();
  if (layers.empty() || layers.front() < 1 || layers.back() != num_layers || !rise) {
    fail("exit_layers: expected rising numbers of layers, the last among them");
  }
  const size_t stride = kTensorsOfExit + (policy_input ? kTensorsOfPolicy : 0);
  if (tensors.size() != stride * (layers.size() - 1) + kTensorsOfExit) {
    fail("exits: expected the weights of every exit layer");
  }
  const int64_t classes = tensors.back().numel();  // the last exit has no policy
  std::vector<LayerExit> exits;
  for (size_t i = 0; i < layers.size(); ++i) {
    const bool has_policy = policy_input && i + 1 < layers.size();
    const Tensor* t = &tensors[i * stride];
    std::vector<Tensor> w;
    for (size_t k = 2; k < (has_policy ? stride : kTensorsOfExit); ++k) {
      w.push_back(torch::stable::clone(t[k]));
    }
    const auto policy = [&](int k) { return has_policy ? std::make_optional(w[k]) : std::nullopt; };
    const ExitHeadParams head = check_head(
        hidden_size,
        classes,
        w[0],
        w[1],
        policy(2),
        policy(3),
        policy(4),
        policy(5),
        has_policy ? policy_input : 0);
    exits.push_back({layers[i], PackedLinear{t[0], t[1]}, std::move(w), head});
  }
  return exits;
}

struct Encoder {
  std::vector<Tensor> embeddings;
  std::vector<BertLayer> layers;
  std::vector<LayerExit> exits;
  bool mean_pooling;
};

// Encoders by number. A pass under way keeps its encoder alive.
class Registry {
 public:
  int64_t add(std::shared_ptr<const Encoder> encoder) {
    const std::lock_guard<std::mutex> lock(mutex_);
    encoders_[++last_] = std::move(encoder);
    return last_;
  }

  std::shared_ptr<const Encoder> find(int64_t number) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto found = encoders_.find(number);
    if (found == encoders_.end()) fail("encoder: expected a number that new_encoder gave");
    return found->second;
  }

  void remove(int64_t number) {
    const std::lock_guard<std::mutex> lock(mutex_);
    encoders_.erase(number);
  }

 private:
  std::mutex mutex_;
  std::map<int64_t, std::shared_ptr<const Encoder>> encoders_;
  int64_t last_ = 0;
};

Registry& registry() {
  // Never destroyed: at the end of the process torch may be gone before its tensors are.
  static Registry* const instance = new Registry;
  return *instance;
}

int64_t new_encoder(
    const std::vector<Tensor>& embeddings,
    const std::vector<Tensor>& layers,
    int64_t num_heads,
    double eps,
    const std::string& activation,
    const std::string& algorithm,
    const std::vector<Tensor>& exits,
    const std::vector<int64_t>& exit_layers,
    bool mean_pooling,
    int64_t policy_input) {
  auto encoder = std::make_shared<Encoder>();
  if (embeddings.size() != 5) fail("embeddings: expected three tables, norm weight and bias");
  encoder->embeddings = embeddings;
  encoder->layers = read_layers(layers, num_heads, eps, activation, algorithm);
  const int64_t num_layers = static_cast<int64_t>(encoder->layers.size());
  encoder->exits =
      read_exits(exits, exit_layers, num_layers, embeddings.back().numel(), policy_input);
  encoder->mean_pooling = mean_pooling;
  return registry().add(std::move(encoder));
}

void free_encoder(int64_t encoder) { registry().remove(encoder); }

void classify(
    const Tensor& ids,
    const Tensor& types,
    const Tensor& positions,
    const Tensor& all_cu_seqlens,
    const Tensor& all_row_ids,
    int64_t encoder_number,
    const std::vector<double>& thresholds,
    int64_t criterion,
    const Tensor& logits,
    const Tensor& exit_layers,
    const Tensor& exit_scores,
    const Tensor& labels,
    const Tensor& streaks) {
  const std::shared_ptr<const Encoder> encoder = registry().find(encoder_number);
  const auto& exits = encoder->exits;
  if (thresholds.size() != exits.size()) fail("thresholds: expected one for each exit layer");
  const ExitResults results = check_results(logits, exit_layers, exit_scores, labels, streaks);
  const int64_t classes = exits.front().head.classes;
  check_tensor(logits, "logits", ScalarType::Float, {logits.size(0), classes});
  check_row_ids(all_row_ids, count_rows(all_cu_seqlens, "cu_seqlens"), logits.size(0));
  const auto& tables = encoder->embeddings;
  Tensor hidden = embed(
      ids,
      types,
      positions,
      tables[0],
      tables[1],
      tables[2],
      tables[3],
      tables[4],
      encoder->layers.front().eps);
  Tensor cu_seqlens = all_cu_seqlens, row_ids = all_row_ids;
  size_t next = 0;
  int64_t layer = 0;
  for (const BertLayer& run : encoder->layers) {
    if (row_ids.numel() == 0) return;
    ++layer;
    std::tie(hidden, cu_seqlens) = run(hidden, cu_seqlens);
    const LayerExit& exit = exits[next];
    if (exit.layer != layer) continue;

    const bool last = next + 1 == exits.size();
    ExitHeadParams head = exit.head;
    set_decision(head, criterion, thresholds[next++], layer, exits.size() - 1, last);
    const Batch batch = check_batch(hidden, cu_seqlens);
    const Tensor pooled = exit.pooler(
        encoder->mean_pooling ? mean_pool(hidden, cu_seqlens) : first_tokens(batch, hidden));
    auto survivors = decide_rows(batch, hidden, row_ids, pooled, head, results);
    if (survivors) std::tie(hidden, cu_seqlens, row_ids) = std::move(*survivors);
  }
}

}  // namespace
}  // namespace consistentee

STABLE_TORCH_LIBRARY_IMPL(consistentee, CPU, m) {
  m.impl("classify", TORCH_BOX(&consistentee::classify));
}

// A call with packed weights, which are of torch's MKLDNN layout, is dispatched by that key; one
// without tensors, by none.
STABLE_TORCH_LIBRARY_IMPL(consistentee, MkldnnCPU, m) {
  m.impl("new_encoder", TORCH_BOX(&consistentee::new_encoder));
}

STABLE_TORCH_LIBRARY_IMPL(consistentee, CompositeExplicitAutograd, m) {
  m.impl("free_encoder", TORCH_BOX(&consistentee::free_encoder));
}
