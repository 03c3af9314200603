// One step of decoding: a token of each of R sequences, whose keys and values lie in slots of a cache.
// consistentee_ext/generation/engine.py says what a step computes.
#pragma once

#include <utility>
#include <vector>

#include "cpu/cache/tokens.h"

namespace consistentee {

// An exit of a decoder: a translator before the last norm, and a policy on the state behind it.
struct TokenExit {
  int64_t layer;                                   // 1-based, below the last
  std::optional<PrepackedLinear> down, up;         // h + up(down(h)); absent: h
  std::optional<Tensor> dense_weight, dense_bias;  // [P, H], [P] float32; absent: a linear policy
  Tensor score_weight, score_bias;                 // [1, P] or [1, H], [1] float32

  Tensor translate(const Tensor& hidden) const;

  // The exit probability of a state [H].
  float probability(const std::vector<float>& state) const;
};

// States [R, H] behind `last_norm`, and exit layers [R] int64. Tokens, slots and positions [R] int64;
// thresholds [E] float32, of which 1 lets no token leave.
std::pair<Tensor, Tensor> decode_step(
    const Engine& engine,
    const Tensor& tokens,
    const Tensor& slots,
    const Tensor& positions,
    const SlotCache& cache,
    const Tensor& thresholds,
    const Norm& last_norm);

}  // namespace consistentee
