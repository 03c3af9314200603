// The one way to launch a kernel: on torch's current stream, and checked.
#pragma once

#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/macros.h>

#include "checks.h"

namespace consistentee {

// The stable ABI of 2.10 has no C++ function for it, only the C shim that generated code uses.
inline cudaStream_t current_stream(const Tensor& tensor) {
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream));
  return static_cast<cudaStream_t>(stream);
}

using torch::stable::accelerator::DeviceGuard;

// `memory`: bytes of shared memory beside what the kernel declares.
template <typename... Params, typename... Args>
void launch(
    void (*kernel)(Params...),
    dim3 grid,
    int threads,
    int64_t memory,
    cudaStream_t stream,
    Args... args) {
  kernel<<<grid, threads, static_cast<size_t>(memory), stream>>>(args...);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

inline void check_device(
    const Tensor& like, std::initializer_list<const Tensor*> tensors, const char* names) {
  for (const Tensor* tensor : tensors) {
    if (!tensor->is_cuda() || tensor->get_device_index() != like.get_device_index()) {
      fail(std::string(names) + ": expected the device of hidden");
    }
  }
}

// What every device grants a block without being asked for more.
constexpr int64_t kSharedMemory = 48 << 10;

}  // namespace consistentee
