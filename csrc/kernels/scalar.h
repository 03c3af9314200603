// The 16-bit floating-point types as raw bits, converted by integer arithmetic that vectorises.
#pragma once

#include <cstdint>
#include <cstring>

#include "kernels/qualifiers.h"

namespace consistentee {

struct BFloat16 {
  uint16_t bits;
};

struct Half {
  uint16_t bits;
};

CONSISTENTEE_INLINE float bits_to_float(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof(value));
  return value;
}

CONSISTENTEE_INLINE uint32_t float_to_bits(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof(bits));
  return bits;
}

CONSISTENTEE_INLINE float to_float(float value) { return value; }

CONSISTENTEE_INLINE float to_float(BFloat16 value) {
  return bits_to_float(static_cast<uint32_t>(value.bits) << 16);
}

CONSISTENTEE_INLINE float to_float(Half value) {
  const uint32_t sign = (value.bits & 0x8000u) << 16;
  const uint32_t magnitude = (value.bits & 0x7fffu) << 13;
  // Moving the exponent's bias from 15 to 127 by a product handles subnormal numbers too.
  const float scaled = bits_to_float(magnitude) * bits_to_float((254u - 15u) << 23);
  const uint32_t special = magnitude >= (0x1fu << 23) ? 0xffu << 23 : 0u;  // infinity, NaN
  return bits_to_float(float_to_bits(scaled) | special | sign);
}

// Rounds to nearest, ties to even.
CONSISTENTEE_INLINE void store(float* out, float value) { *out = value; }

CONSISTENTEE_INLINE void store(BFloat16* out, float value) {
  const uint32_t bits = float_to_bits(value);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
  out->bits = static_cast<uint16_t>(nan ? 0x7fc0u : rounded);
}

CONSISTENTEE_INLINE void store(Half* out, float value) {
  const uint32_t bits = float_to_bits(value);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  // Subnormal in half precision: adding 0.5 leaves the rounded mantissa in the low bits.
  const uint32_t small = float_to_bits(bits_to_float(magnitude) + 0.5f) - float_to_bits(0.5f);
  const uint32_t rebased = magnitude - (112u << 23);
  const uint32_t normal = (rebased + 0xfffu + ((rebased >> 13) & 1u)) >> 13;
  uint32_t half = magnitude < 0x38800000u ? small : normal;
  if (magnitude >= 0x477ff000u) half = 0x7c00u;  // 65520 and above round to infinity
  if (magnitude > 0x7f800000u) half = 0x7e00u;   // NaN
  out->bits = static_cast<uint16_t>(sign | half);
}

}  // namespace consistentee
