// What a product applies to its sums: bias and activation.
#pragma once

#include "kernels/approx.h"
#include "kernels/cpu/table.h"

namespace consistentee::CONSISTENTEE_SIMD {
namespace {

struct Identity {
  float operator()(float x) const { return x; }
};
struct Gelu {
  float operator()(float x) const { return gelu_approx(x); }
};
struct GeluTanh {
  float operator()(float x) const {
    return 0.5f * x * (1.0f + tanh_approx(0.79788456080286536f * (x + 0.044715f * x * x * x)));
  }
};
struct Relu {
  float operator()(float x) const { return x < 0.0f ? 0.0f : x; }
};
struct Silu {
  float operator()(float x) const { return x / (1.0f + exp_approx(-x)); }
};
struct Tanh {
  float operator()(float x) const { return tanh_approx(x); }
};

// Calls f with the function of an activation.
template <typename F>
void with_activation(Activation activation, const F& f) {
  switch (activation) {
    case Activation::kNone: return f(Identity{});
    case Activation::kGelu: return f(Gelu{});
    case Activation::kGeluTanh: return f(GeluTanh{});
    case Activation::kRelu: return f(Relu{});
    case Activation::kSilu: return f(Silu{});
    case Activation::kTanh: return f(Tanh{});
  }
}

}  // namespace
}  // namespace consistentee::CONSISTENTEE_SIMD
