// CUDA's words for g++, so that it compiles kernels as ordinary C++ for the machine beside.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <string>

#include "cuda_machine.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
// Thread-local variables lie in a segment of the library that the machine finds: a block has its own
// copy, which is brought in when the block's turn comes.
#define __shared__ static thread_local
#define CONSISTENTEE_DYNAMIC_SHARED(name) float* const name = cuda_shim::dynamic_shared()

static void __syncthreads(int line = __builtin_LINE()) {
  cuda_shim::Fiber& fiber = *cuda_shim::machine.current;
  fiber.wait = cuda_shim::Wait::kBarrier;
  fiber.line = line;
  ++fiber.block->at_barrier;
  cuda_shim::try_barrier(*fiber.block);
  cuda_shim::pause();
}

template <typename T>
static T __shfl_xor_sync(unsigned mask, T value, int step, int line = __builtin_LINE()) {
  static_assert(sizeof(T) == sizeof(uint32_t));
  cuda_shim::Fiber& fiber = *cuda_shim::machine.current;
  const int lane = fiber.thread % cuda_shim::kLanes;
  if (!(mask >> lane & 1)) {
    cuda_shim::fail("__shfl_xor_sync: the mask lacks the calling lane " + std::to_string(lane));
  }
  fiber.wait = cuda_shim::Wait::kShuffle;
  fiber.line = line;
  fiber.mask = mask;
  fiber.step = step;
  std::memcpy(&fiber.value, &value, sizeof(value));
  cuda_shim::try_shuffle(*fiber.block, fiber);
  cuda_shim::pause();
  std::memcpy(&value, &fiber.value, sizeof(value));
  return value;
}

static int32_t atomicAdd(int32_t* address, int32_t value) {
  cuda_shim::maybe_yield();
  const int32_t before = *address;
  *address += value;
  // Blocks tell each other something here: what holds now may not once the others have gone on.
  cuda_shim::maybe_lower(*cuda_shim::machine.current->block, 2);
  cuda_shim::maybe_yield();
  return before;
}

static void __threadfence() { cuda_shim::maybe_yield(); }
