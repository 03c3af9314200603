// exp, tanh and gelu without branches or calls: loops over them vectorise.
#pragma once

#include "kernels/scalar.h"

namespace consistentee {

// exp(x) to 2 ulp without a branch or a call: 2^n * polynomial(r), r = x - n ln 2.
CONSISTENTEE_INLINE float exp_approx(float x) {
  x = x > 88.0f ? 88.0f : x;
  x = x < -87.0f ? -87.0f : x;
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  const float shifted = x * 1.44269504088896341f + kRound;
  const float n = shifted - kRound;
  const float r = (x - n * 0.693359375f) - n * -2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  const uint32_t power = (float_to_bits(shifted) - float_to_bits(kRound) + 127u) << 23;
  return p * bits_to_float(power);
}

// tanh(x): an odd polynomial near zero, where 1 - 2 / (exp(2|x|) + 1) would cancel.
CONSISTENTEE_INLINE float tanh_approx(float x) {
  const float magnitude = bits_to_float(float_to_bits(x) & 0x7fffffffu);
  const float z = x * x;
  float p = -5.70498872745e-3f;
  p = p * z + 2.06390887954e-2f;
  p = p * z - 5.37397155531e-2f;
  p = p * z + 1.33314422036e-1f;
  p = p * z - 3.33332819422e-1f;
  const float small = p * z * x + x;
  const float large = 1.0f - 2.0f / (exp_approx(2.0f * magnitude) + 1.0f);
  const float sign = bits_to_float((float_to_bits(x) & 0x80000000u) | float_to_bits(1.0f));
  return magnitude < 0.625f ? small : large * sign;
}

// gelu(x) = x (1/2 + erf(x / sqrt(2)) / 2) to 2e-6: within +-5 the half of erf is x times a minimax
// polynomial of t = 2 (x / 5)^2 - 1, beyond it is that of +-5.
CONSISTENTEE_INLINE float gelu_approx(float x) {
  float inner = x > 5.0f ? 5.0f : x;
  inner = inner < -5.0f ? -5.0f : inner;
  const float t = inner * inner * 0.08f - 1.0f;
  float p = 4.929700334e-04f;
  p = p * t - 1.514155067e-03f;
  p = p * t + 2.001859478e-03f;
  p = p * t - 2.915670273e-03f;
  p = p * t + 6.165430691e-03f;
  p = p * t - 1.097323401e-02f;
  p = p * t + 1.649765647e-02f;
  p = p * t - 2.333673019e-02f;
  p = p * t + 3.142622946e-02f;
  p = p * t - 4.043294960e-02f;
  p = p * t + 5.152142088e-02f;
  p = p * t - 7.029665238e-02f;
  p = p * t + 1.413637805e-01f;
  return x * (inner * p + 0.5f);
}

}  // namespace consistentee
