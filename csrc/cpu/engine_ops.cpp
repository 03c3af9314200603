// The ops that build an engine, run it and free it.

#include <memory>

#include "cpu/engine.h"
#include "registry.h"

namespace consistentee {
namespace {

using OptionalTensor = std::optional<Tensor>;

std::optional<Norm> optional_norm(
    const OptionalTensor& weight, const OptionalTensor& bias, double eps) {
  return weight ? std::make_optional(Norm{*weight, bias, eps}) : std::nullopt;
}

std::optional<PrepackedLinear> optional_linear(
    const OptionalTensor& weight,
    const OptionalTensor& bias,
    const std::string& activation = "none") {
  return weight ? std::make_optional<PrepackedLinear>(*weight, bias, activation) : std::nullopt;
}

int64_t engine_create(
    const Tensor& word_table,
    const OptionalTensor& type_table,
    const OptionalTensor& position_table,
    const OptionalTensor& norm_weight,
    const OptionalTensor& norm_bias,
    double norm_eps,
    const OptionalTensor& product,
    const OptionalTensor& product_bias,
    bool product_first,
    int64_t hidden_size) {
  Embedding embedding{
      word_table,
      type_table,
      position_table,
      optional_norm(norm_weight, norm_bias, norm_eps),
      optional_linear(product, product_bias),
      product_first};
  return Registry<Engine>::instance().add(
      std::make_shared<Engine>(std::move(embedding), hidden_size));
}

void engine_add_block(
    int64_t engine,
    const Tensor& query,
    const OptionalTensor& query_bias,
    const OptionalTensor& query_scale,
    const OptionalTensor& key_value,
    const OptionalTensor& key_value_bias,
    const OptionalTensor& key_value_scale,
    const Tensor& attention_out,
    const OptionalTensor& attention_out_bias,
    const OptionalTensor& attention_out_scale,
    int64_t num_heads,
    int64_t head_size,
    const OptionalTensor& attention_norm_weight,
    const OptionalTensor& attention_norm_bias,
    double attention_norm_eps,
    const Tensor& up,
    const OptionalTensor& up_bias,
    const OptionalTensor& up_scale,
    const std::string& up_activation,
    const Tensor& down,
    const OptionalTensor& down_bias,
    const OptionalTensor& down_scale,
    const OptionalTensor& gate,
    const OptionalTensor& gate_bias,
    const OptionalTensor& gate_scale,
    const std::string& gate_activation,
    const Tensor& mlp_norm_weight,
    const OptionalTensor& mlp_norm_bias,
    double mlp_norm_eps,
    bool norm_first,
    const OptionalTensor& attention_out_norm_weight,
    const OptionalTensor& attention_out_norm_bias,
    double attention_out_norm_eps,
    const OptionalTensor& mlp_out_norm_weight,
    const OptionalTensor& mlp_out_norm_bias,
    double mlp_out_norm_eps,
    const std::optional<int64_t>& num_kv_heads,
    const std::optional<double>& scale,
    const std::optional<int64_t>& low,
    const std::optional<int64_t>& high,
    const OptionalTensor& cos,
    const OptionalTensor& sin,
    const OptionalTensor& bias,
    const OptionalTensor& relative_keys,
    const OptionalTensor& relative_queries,
    const OptionalTensor& buckets,
    const OptionalTensor& query_norm,
    double query_norm_eps,
    const OptionalTensor& key_norm,
    double key_norm_eps,
    bool last_queries,
    int64_t levels) {
  if (!norm_first && !attention_norm_weight) {
    fail("attention_norm_weight: expected one where the norms come behind the sums");
  }
  if (num_heads < 1 || head_size < 1) fail("num_heads, head_size: expected at least 1");
  Form form = make_form(
      num_heads,
      head_size,
      num_kv_heads,
      scale,
      low,
      high,
      cos,
      sin,
      bias,
      relative_keys,
      relative_queries,
      buckets,
      query_norm,
      query_norm_eps,
      key_norm,
      key_norm_eps,
      last_queries);
  const auto linear = [&](const Tensor& weight,
                          const OptionalTensor& offset,
                          const OptionalTensor& weight_scale,
                          const std::string& activation = "none") {
    return PrepackedLinear(weight, offset, activation, optional_int8(weight_scale, levels));
  };
  Attention attention{
      linear(query, query_bias, query_scale),
      key_value ? std::make_optional(linear(*key_value, key_value_bias, key_value_scale))
                : std::nullopt,
      linear(attention_out, attention_out_bias, attention_out_scale),
      num_heads,
      head_size,
      std::move(form)};
  find_engine(engine)->add_block(
      {std::move(attention),
       optional_norm(attention_norm_weight, attention_norm_bias, attention_norm_eps),
       {linear(up, up_bias, up_scale, up_activation),
        linear(down, down_bias, down_scale),
        gate ? std::make_optional(linear(*gate, gate_bias, gate_scale, gate_activation))
             : std::nullopt},
       {mlp_norm_weight, mlp_norm_bias, mlp_norm_eps},
       norm_first,
       optional_norm(attention_out_norm_weight, attention_out_norm_bias, attention_out_norm_eps),
       optional_norm(mlp_out_norm_weight, mlp_out_norm_bias, mlp_out_norm_eps)});
}

Pooling check_pooling(const std::string& pooling) {
  if (pooling == "cls") return Pooling::kFirst;
  if (pooling == "last") return Pooling::kLast;
  if (pooling == "pair") return Pooling::kPair;
  if (pooling != "mean") fail("pooling: expected cls, last, mean or pair, got " + pooling);
  return Pooling::kMean;
}

void engine_add_exit(
    int64_t engine,
    int64_t layer,
    const std::string& pooling,
    const OptionalTensor& pooler,
    const OptionalTensor& pooler_bias,
    const std::string& pooler_activation,
    bool pools_states,
    const OptionalTensor& norm_weight,
    const OptionalTensor& norm_bias,
    double norm_eps,
    bool norms_tokens,
    const OptionalTensor& state_norm_weight,
    const OptionalTensor& state_norm_bias,
    double state_norm_eps,
    const Tensor& classifier_weight,
    const Tensor& classifier_bias,
    const std::optional<Tensor>& dense_weight,
    const std::optional<Tensor>& dense_bias,
    const std::optional<Tensor>& score_weight,
    const std::optional<Tensor>& score_bias,
    int64_t policy_input,
    int64_t state_activation,
    bool multi_label) {
  const std::shared_ptr<Engine> target = find_engine(engine);
  std::vector<Tensor> copies;
  const auto copy = [&](const std::optional<Tensor>& weight) {
    if (weight) copies.push_back(torch::stable::clone(*weight));
    return weight ? std::make_optional(copies.back()) : std::nullopt;
  };
  const Tensor weight = *copy(classifier_weight), bias = *copy(classifier_bias);
  const auto dense = copy(dense_weight), dense_offset = copy(dense_bias);
  const auto score = copy(score_weight), score_offset = copy(score_bias);
  const ExitHead head = check_head(
      target->hidden_size(),
      bias.numel(),
      weight,
      bias,
      dense,
      dense_offset,
      score,
      score_offset,
      policy_input,
      state_activation,
      multi_label);
  target->add_exit(
      {layer,
       check_pooling(pooling),
       optional_linear(pooler, pooler_bias, pooler_activation),
       pools_states,
       optional_norm(norm_weight, norm_bias, norm_eps),
       norms_tokens,
       optional_norm(state_norm_weight, state_norm_bias, state_norm_eps),
       std::move(copies),
       head});
}

PackedRows engine_advance(
    int64_t engine,
    int64_t first,
    int64_t last,
    const std::optional<Tensor>& ids,
    const std::optional<Tensor>& types,
    const std::optional<Tensor>& positions,
    const std::optional<Tensor>& hidden,
    const Tensor& cu_seqlens,
    const Tensor& row_ids,
    int64_t criterion,
    const Tensor& thresholds,
    const OptionalTensor& first_lengths,
    const Tensor& logits,
    const Tensor& exit_layers,
    const Tensor& exit_scores,
    const Tensor& labels,
    const Tensor& streaks) {
  const std::shared_ptr<const Engine> target = find_engine(engine);
  const ExitResults results = check_results(logits, exit_layers, exit_scores, labels, streaks);
  const PassDecision decision{check_criterion(criterion), thresholds, first_lengths};
  const int64_t rows = count_rows(cu_seqlens, "cu_seqlens"), all_rows = logits.size(0);
  check_row_ids(row_ids, rows, all_rows);
  if (first_lengths) check_tensor(*first_lengths, "first_lengths", ScalarType::Int, {all_rows});
  target->check_range(first, last);
  const bool has_tokens = ids && types && positions;
  if (first == 0 ? !has_tokens || hidden : !hidden || ids || types || positions) {
    fail("ids, types, positions, hidden: expected the first three at block 0, else the last");
  }
  const Tensor start = hidden ? *hidden : target->embed(*ids, *types, *positions);
  if (hidden) {
    check_batch(start, cu_seqlens);
    check_tensor(start, "hidden", target->dtype(), {start.size(0), target->hidden_size()});
  }
  PackedRows batch = target->advance(
      {start, cu_seqlens, row_ids}, first, last, decision, results, all_rows, logits.size(1));
  // What is returned shares no memory with the arguments.
  auto& [unused, offsets, left] = batch;
  if (offsets.const_data_ptr() == cu_seqlens.const_data_ptr())
    offsets = torch::stable::clone(offsets);
  if (left.const_data_ptr() == row_ids.const_data_ptr()) left = torch::stable::clone(left);
  return batch;
}

void engine_free(int64_t engine) { Registry<Engine>::instance().remove(engine); }

}  // namespace

std::shared_ptr<Engine> find_engine(int64_t number) {
  return Registry<Engine>::instance().find(number, "engine_create");
}

}  // namespace consistentee

STABLE_TORCH_LIBRARY_IMPL(consistentee, CPU, m) {
  m.impl("engine_create", TORCH_BOX(&consistentee::engine_create));
  m.impl("engine_add_block", TORCH_BOX(&consistentee::engine_add_block));
  m.impl("engine_add_exit", TORCH_BOX(&consistentee::engine_add_exit));
  m.impl("engine_advance", TORCH_BOX(&consistentee::engine_advance));
}

// Prepacked weights are of torch's MKLDNN layout: a call that has one is dispatched by that key.
STABLE_TORCH_LIBRARY_IMPL(consistentee, MkldnnCPU, m) {
  m.impl("engine_create", TORCH_BOX(&consistentee::engine_create));
  m.impl("engine_add_block", TORCH_BOX(&consistentee::engine_add_block));
  m.impl("engine_add_exit", TORCH_BOX(&consistentee::engine_add_exit));
}

// A call without tensors is dispatched by none.
STABLE_TORCH_LIBRARY_IMPL(consistentee, CompositeExplicitAutograd, m) {
  m.impl("engine_free", TORCH_BOX(&consistentee::engine_free));
}
