// Heads of a token as a cache has them: normed and turned.
#pragma once

#include "kernels/cpu/attention_form.h"

namespace consistentee::CONSISTENTEE_SIMD {
namespace {

template <typename scalar_t>
void place_heads(
    const scalar_t* x,
    const AttentionForm& form,
    const float* norm,
    float eps,
    int64_t place,
    int64_t heads,
    int64_t size,
    scalar_t* out,
    float* scratch) {
  for (int64_t head = 0; head < heads; ++head, x += size, out += size) {
    unpack(x, 0, 1, size, size, scratch);
    prepare(form, norm, eps, place, size, scratch);
#pragma omp simd
    for (int64_t i = 0; i < size; ++i) store(out + i, scratch[i]);
  }
}

}  // namespace
}  // namespace consistentee::CONSISTENTEE_SIMD
