// In the place of csrc/cuda/launch.h where the CUDA ops are compiled for the host: kernels run there, or
// are counted alone, and an event has come once it is recorded.
#pragma once

#include <algorithm>

#include "../../cuda_shim.h"
#include "checks.h"
#include "kernels/cuda/exit_rows.cuh"

namespace consistentee {

using cudaStream_t = void*;

inline cudaStream_t current_stream(const Tensor&) { return nullptr; }

struct DeviceGuard {
  explicit DeviceGuard(int) {}
};

inline void check_device(const Tensor&, std::initializer_list<const Tensor*>, const char*) {}

constexpr int64_t kSharedMemory = 48 << 10;

// What passes have cost so far.
struct HostCounts {
  int64_t launches = 0, waits = 0;
};

inline HostCounts& host_counts() {
  static HostCounts counts;
  return counts;
}

#ifndef CONSISTENTEE_COUNT_ONLY
template <typename... Params, typename... Args>
void launch(
    void (*kernel)(Params...), dim3 grid, int threads, int64_t memory, cudaStream_t, Args... args) {
  const auto seed = static_cast<uint64_t>(++host_counts().launches);
  cuda_shim::launch(seed, kernel, grid, threads, memory, args...);
}
#else
template <typename Kernel, typename... Args>
void launch(Kernel, dim3, int, int64_t, cudaStream_t, Args...) {
  ++host_counts().launches;
}

// The next layer reads what this one leaves: all rows stay.
template <typename scalar_t, typename... Params>
void launch(
    void (*)(ExitRows<scalar_t>, Params...),
    dim3,
    int,
    int64_t,
    cudaStream_t,
    const ExitRows<scalar_t>& batch,
    const ExitHead&,
    const ExitDecision&,
    const ExitResults&,
    const SurvivorPlan& plan) {
  ++host_counts().launches;
  std::copy_n(batch.row_ids, batch.rows, plan.row_ids);
  if (plan.removes) std::copy_n(batch.cu_seqlens, batch.rows + 1, plan.cu_seqlens);
  plan.totals[0] = static_cast<int32_t>(batch.rows);
  plan.totals[1] = batch.cu_seqlens[batch.rows];
}
#endif

struct HostEvent {
  bool recorded = false;
};
using cudaEvent_t = HostEvent*;
constexpr unsigned cudaEventDisableTiming = 2;

inline void cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) { *event = new HostEvent; }

inline void cudaEventRecord(cudaEvent_t event, cudaStream_t) { event->recorded = true; }

inline void cudaEventSynchronize(cudaEvent_t event) {
  if (!event->recorded) fail("an event that was not recorded");
  ++host_counts().waits;
}

inline void cudaMemsetAsync(void* target, int value, size_t bytes, cudaStream_t) {
  std::memset(target, value, bytes);
}

}  // namespace consistentee

#undef STD_CUDA_CHECK
#define STD_CUDA_CHECK(call) call
