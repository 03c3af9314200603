// Loads and stores of several elements at once.
#pragma once

#include <cstdint>

#include "kernels/qualifiers.h"

namespace consistentee {

constexpr int kWideBytes = 16;  // the widest access of a thread

template <typename scalar_t, int Width>
struct alignas(Width * sizeof(scalar_t) < kWideBytes ? Width * sizeof(scalar_t) : kWideBytes) Wide {
  scalar_t values[Width];
};

static __device__ __forceinline__ bool is_wide(const void* address) {
  return reinterpret_cast<uintptr_t>(address) % kWideBytes == 0;
}

// The address is a multiple of the bytes read, or of 16 where they are more; and so below. A memcpy
// to a local would not do: nvcc makes single bytes of it, whatever it is told of the alignment.
template <int Width, typename scalar_t>
static __device__ __forceinline__ Wide<scalar_t, Width> load_wide(const scalar_t* from) {
  return *reinterpret_cast<const Wide<scalar_t, Width>*>(from);
}

template <int Width, typename scalar_t>
static __device__ __forceinline__ void store_wide(
    scalar_t* to, const Wide<scalar_t, Width>& stored) {
  *reinterpret_cast<Wide<scalar_t, Width>*>(to) = stored;
}

}  // namespace consistentee
