// Activations of products.
#pragma once

#include "kernels/approx.h"
#include "kernels/cpu/table.h"

namespace consistentee::CONSISTENTEE_SIMD {
namespace {

inline float gelu_tanh(float x) {
  return 0.5f * x * (1.0f + tanh_approx(0.79788456080286536f * (x + 0.044715f * x * x * x)));
}

// Calls f with an activation as a function of a number.
template <typename F>
void with_activation(Activation activation, const F& f) {
  switch (activation) {
    case Activation::kNone: return f([](float x) { return x; });
    case Activation::kGelu: return f([](float x) { return gelu_approx(x); });
    case Activation::kGeluTanh: return f([](float x) { return gelu_tanh(x); });
    case Activation::kRelu: return f([](float x) { return x < 0.0f ? 0.0f : x; });
    case Activation::kSilu: return f([](float x) { return x / (1.0f + exp_approx(-x)); });
    case Activation::kTanh: return f([](float x) { return tanh_approx(x); });
  }
}

}  // namespace
}  // namespace consistentee::CONSISTENTEE_SIMD
