// Prompts of R sequences, all layers, whose keys and values go to slots of a cache.
#pragma once

#include "cpu/cache/tokens.h"

namespace consistentee {

// States [R, H] of the last tokens behind `last_norm`. Tokens [T] int64, prompt after prompt,
// cu_seqlens [R+1] int32, slots [R] int64.
Tensor prefill(
    const Engine& engine,
    const Tensor& tokens,
    const Tensor& cu_seqlens,
    const Tensor& slots,
    const SlotCache& cache,
    const Norm& last_norm);

}  // namespace consistentee
