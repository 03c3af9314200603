// Calls of ops by name through torch's dispatcher, which finds the kernels of the tensors' device.
#pragma once

#include <array>

#include "stable.h"

// What an op raised; torch has it from 2.13 on.
extern "C" __attribute__((weak)) const char* torch_exception_get_what_without_backtrace();

namespace consistentee::device {

// The arguments are in `stack`, and then the results.
inline void call_dispatcher(const char* op, StableIValue* stack) {
  if (torch_call_dispatcher(op, "", stack, TORCH_ABI_VERSION) == TORCH_SUCCESS) return;
  const bool known = torch_exception_get_what_without_backtrace != nullptr;
  fail(std::string(op) + ": " + (known ? torch_exception_get_what_without_backtrace() : "failed"));
}

template <typename... Args>
std::array<StableIValue, sizeof...(Args)> run(const char* op, const Args&... args) {
  std::array<StableIValue, sizeof...(Args)> stack{torch::stable::detail::from(args)...};
  call_dispatcher(op, stack.data());
  return stack;
}

// An op of one result.
template <typename T = Tensor, typename... Args>
T call(const char* op, const Args&... args) {
  return torch::stable::detail::to<T>(run(op, args...)[0]);
}

// A view that begins `offset` elements behind the tensor's first: the shim adds it to the tensor's own.
template <size_t Dims>
Tensor strided(
    const Tensor& tensor,
    int64_t offset,
    const int64_t (&sizes)[Dims],
    const int64_t (&strides)[Dims]) {
  AtenTensorHandle view = nullptr;
  TORCH_ERROR_CODE_CHECK(
      aoti_torch__reinterpret_tensor(tensor.get(), Dims, sizes, strides, offset, &view));
  return Tensor(view);
}

// The first `count` entries of the first dimension.
inline Tensor first_of(const Tensor& tensor, int64_t count) {
  Tensor all = tensor;
  return all.size(0) == count ? all : torch::stable::narrow(all, 0, 0, count);
}

}  // namespace consistentee::device
