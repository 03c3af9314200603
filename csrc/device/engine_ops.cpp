// The ops that build a device engine, run it and free it.

#include "checks.h"
#include "device/engine.h"
#include "registry.h"

namespace consistentee::device {
namespace {

using OptionalTensor = std::optional<Tensor>;

Registry<Engine>& registry() { return Registry<Engine>::instance(); }

std::shared_ptr<Engine> find_engine(int64_t number) {
  return registry().find(number, "device_engine_create");
}

int64_t device_engine_create(
    int64_t flash_arguments,
    std::vector<double> cost_tokens,
    std::vector<double> layer_costs,
    std::vector<double> removal_costs) {
  check_flash_arguments(flash_arguments);
  return registry().add(
      std::make_shared<Engine>(
          RemovalCosts(std::move(cost_tokens), std::move(layer_costs), std::move(removal_costs))));
}

void device_engine_add_block(
    int64_t engine,
    const Tensor& query,
    const OptionalTensor& query_bias,
    const OptionalTensor& key_value,
    const OptionalTensor& key_value_bias,
    const Tensor& attention_out,
    const OptionalTensor& attention_out_bias,
    int64_t num_heads,
    int64_t head_size,
    const Tensor& attention_norm_weight,
    const Tensor& attention_norm_bias,
    double attention_norm_eps,
    const Tensor& up,
    const OptionalTensor& up_bias,
    const std::string& up_activation,
    const Tensor& down,
    const OptionalTensor& down_bias,
    const Tensor& mlp_norm_weight,
    const Tensor& mlp_norm_bias,
    double mlp_norm_eps) {
  if (num_heads < 1 || head_size < 1) fail("num_heads, head_size: expected at least 1");
  std::optional<Linear> keys;
  if (key_value) keys.emplace(*key_value, key_value_bias);
  find_engine(engine)->add_block(
      {{Linear(query, query_bias),
        std::move(keys),
        Linear(attention_out, attention_out_bias),
        num_heads,
        head_size},
       {attention_norm_weight, attention_norm_bias, attention_norm_eps},
       Linear(up, up_bias, up_activation),
       Linear(down, down_bias),
       {mlp_norm_weight, mlp_norm_bias, mlp_norm_eps}});
}

void device_engine_add_exit(
    int64_t engine,
    int64_t layer,
    const std::string& pooling,
    const Tensor& pooler,
    const OptionalTensor& pooler_bias,
    const Tensor& classifier_weight,
    const Tensor& classifier_bias,
    const OptionalTensor& dense_weight,
    const OptionalTensor& dense_bias,
    const OptionalTensor& score_weight,
    const OptionalTensor& score_bias,
    int64_t policy_input,
    int64_t state_activation,
    bool multi_label) {
  find_engine(engine)->add_exit(
      {layer,
       pooling,
       Linear(pooler, pooler_bias),
       classifier_weight,
       classifier_bias,
       dense_weight,
       dense_bias,
       score_weight,
       score_bias,
       policy_input,
       state_activation,
       multi_label});
}

std::tuple<Tensor, Tensor, Tensor> device_engine_advance(
    int64_t engine,
    int64_t first,
    int64_t last,
    const Tensor& hidden,
    const Tensor& cu_seqlens,
    const Tensor& row_ids,
    int64_t max_length,
    int64_t criterion,
    const Tensor& thresholds,
    const OptionalTensor& first_lengths,
    const Tensor& logits,
    const Tensor& exit_layers,
    const Tensor& exit_scores,
    const Tensor& labels,
    const Tensor& streaks,
    const Tensor& tickets,
    const Tensor& totals,
    const OptionalTensor& one_a_row,
    bool eager) {
  const std::shared_ptr<const Engine> target = find_engine(engine);
  const int64_t rows = count_rows(cu_seqlens, "cu_seqlens"), exits = target->num_exits();
  check_hidden(hidden);
  check_tensor(row_ids, "row_ids", ScalarType::Long, {rows});
  check_tensor(tickets, "tickets", ScalarType::Int, {rows});
  if (one_a_row) check_tensor(*one_a_row, "one_a_row", ScalarType::Int, {rows + 1});
  check_tensor(totals, "totals", ScalarType::Int, {exits, 2});
  if (thresholds.dim() != 2 || thresholds.size(0) != exits) {
    fail("thresholds: expected shape [" + std::to_string(exits) + ", N]");
  }
  if (first < 0 || first >= last || last > target->num_layers()) {
    fail("first, last: expected 0 <= first < last <= " + std::to_string(target->num_layers()));
  }
  Counts counts(totals, hidden);
  const Batch left = target->advance(
      {hidden, cu_seqlens, row_ids, max_length},
      first,
      last,
      {criterion,
       thresholds,
       first_lengths,
       {logits, exit_layers, exit_scores, labels, streaks},
       tickets,
       one_a_row,
       eager},
      counts);
  return {left.hidden, left.cu_seqlens, left.row_ids};
}

void device_engine_free(int64_t engine) { registry().remove(engine); }

}  // namespace
}  // namespace consistentee::device

// What it calls is dispatched by the device; these ops are the same for all.
STABLE_TORCH_LIBRARY_IMPL(consistentee, CompositeExplicitAutograd, m) {
  using namespace consistentee::device;
  m.impl("device_engine_create", TORCH_BOX(&device_engine_create));
  m.impl("device_engine_add_block", TORCH_BOX(&device_engine_add_block));
  m.impl("device_engine_add_exit", TORCH_BOX(&device_engine_add_exit));
  m.impl("device_engine_advance", TORCH_BOX(&device_engine_advance));
  m.impl("device_engine_free", TORCH_BOX(&device_engine_free));
}
