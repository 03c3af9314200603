// Copies a span of bytes with the widest accesses its addresses allow.
#pragma once

#include <cstdint>
#include <cstring>

#include "kernels/qualifiers.h"

namespace consistentee {

// `lanes` callers share the copy: each takes every lanes-th chunk, starting with its own `lane`.
// Chunks are of Width bytes where both addresses are multiples of it; the rest is left to half the
// width.
template <int Width = 16>
CONSISTENTEE_INLINE void copy_span(
    void* __restrict__ dst,
    const void* __restrict__ src,
    int64_t bytes,
    int64_t lane,
    int64_t lanes) {
  auto* to = static_cast<unsigned char*>(dst);
  const auto* from = static_cast<const unsigned char*>(src);
  int64_t copied = 0;
  if ((reinterpret_cast<uintptr_t>(to) | reinterpret_cast<uintptr_t>(from)) % Width == 0) {
    const int64_t chunks = bytes / Width;
    for (int64_t i = lane; i < chunks; i += lanes) {
      memcpy(
          __builtin_assume_aligned(to + i * Width, Width),
          __builtin_assume_aligned(from + i * Width, Width),
          Width);
    }
    copied = chunks * Width;
  }
  if constexpr (Width > 1) {
    copy_span<Width / 2>(to + copied, from + copied, bytes - copied, lane, lanes);
  }
}

}  // namespace consistentee
