// The ops of decoding: an exit of a decoder, prompts, and a step.

#include "cpu/cache/prefill.h"
#include "cpu/cache/step.h"

#include "cpu/engine.h"

namespace consistentee {
namespace {

using OptionalTensor = std::optional<Tensor>;

void engine_add_token_exit(
    int64_t engine,
    int64_t layer,
    const OptionalTensor& down,
    const OptionalTensor& up,
    const OptionalTensor& dense_weight,
    const OptionalTensor& dense_bias,
    const Tensor& score_weight,
    const Tensor& score_bias) {
  const std::shared_ptr<Engine> target = find_engine(engine);
  if (down.has_value() != up.has_value()) fail("down, up: expected both or none");
  if (dense_weight.has_value() != dense_bias.has_value()) {
    fail("dense_weight, dense_bias: expected both or none");
  }
  int64_t features = target->hidden_size();
  if (dense_weight) {
    const int64_t size = dense_bias->numel();
    check_tensor(*dense_weight, "dense_weight", ScalarType::Float, {size, features});
    check_tensor(*dense_bias, "dense_bias", ScalarType::Float, {size});
    features = size;
  }
  check_tensor(score_weight, "score_weight", ScalarType::Float, {1, features});
  check_tensor(score_bias, "score_bias", ScalarType::Float, {1});
  const auto linear = [](const OptionalTensor& weight) {
    return weight ? std::make_optional<PrepackedLinear>(*weight, std::nullopt) : std::nullopt;
  };
  // Copies: a caller's tensor may be moved to other memory.
  const auto copy = [](const OptionalTensor& weight) {
    return weight ? std::make_optional(torch::stable::clone(*weight)) : std::nullopt;
  };
  target->add_token_exit(
      {layer,
       linear(down),
       linear(up),
       copy(dense_weight),
       copy(dense_bias),
       torch::stable::clone(score_weight),
       torch::stable::clone(score_bias)});
}

Tensor engine_prefill(
    int64_t engine,
    const Tensor& tokens,
    const Tensor& cu_seqlens,
    const Tensor& slots,
    const Tensor& keys,
    const Tensor& values,
    const Tensor& states,
    const Tensor& filled,
    const Tensor& norm_weight,
    double norm_eps) {
  const std::shared_ptr<const Engine> target = find_engine(engine);
  const Norm norm{norm_weight, std::nullopt, norm_eps};
  return prefill(*target, tokens, cu_seqlens, slots, {keys, values, states, filled}, norm);
}

std::tuple<Tensor, Tensor> engine_step(
    int64_t engine,
    const Tensor& tokens,
    const Tensor& slots,
    const Tensor& positions,
    const Tensor& keys,
    const Tensor& values,
    const Tensor& states,
    const Tensor& filled,
    const Tensor& thresholds,
    const Tensor& norm_weight,
    double norm_eps) {
  const std::shared_ptr<const Engine> target = find_engine(engine);
  const auto [found, exit_layers] = decode_step(
      *target,
      tokens,
      slots,
      positions,
      {keys, values, states, filled},
      thresholds,
      {norm_weight, std::nullopt, norm_eps});
  return {found, exit_layers};
}

}  // namespace
}  // namespace consistentee

STABLE_TORCH_LIBRARY_IMPL(consistentee, CPU, m) {
  m.impl("engine_add_token_exit", TORCH_BOX(&consistentee::engine_add_token_exit));
  m.impl("engine_prefill", TORCH_BOX(&consistentee::engine_prefill));
  m.impl("engine_step", TORCH_BOX(&consistentee::engine_step));
}

// Prepacked weights are of torch's MKLDNN layout: a call that has one is dispatched by that key.
STABLE_TORCH_LIBRARY_IMPL(consistentee, MkldnnCPU, m) {
  m.impl("engine_add_token_exit", TORCH_BOX(&consistentee::engine_add_token_exit));
}
