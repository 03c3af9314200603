// The one place that knows the oddities of LibTorch's stable ABI: checks and tensor helpers.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <initializer_list>
#include <stdexcept>
#include <string>
#include <vector>

namespace consistentee {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Python names the caller's mistakes (consistentee_ext/ops/checks.py); these checks keep a direct call
// of an op from reading or writing out of bounds.
[[noreturn]] inline void fail(const std::string& message) { throw std::runtime_error(message); }

template <typename Sizes>
std::string joined(const Sizes& sizes) {
  std::string text;
  for (const int64_t size : sizes) text += (text.empty() ? "" : ", ") + std::to_string(size);
  return text;
}

inline void check_tensor(
    const Tensor& tensor,
    const char* name,
    ScalarType dtype,
    std::initializer_list<int64_t> shape) {
  bool same = tensor.dim() == static_cast<int64_t>(shape.size()) && tensor.scalar_type() == dtype &&
              tensor.is_contiguous();
  int64_t dim = 0;
  for (const int64_t size : shape) same = same && tensor.size(dim++) == size;
  if (same) return;
  std::vector<int64_t> got;
  for (dim = 0; dim < tensor.dim(); ++dim) got.push_back(tensor.size(dim));
  fail(
      std::string(name) + ": expected a contiguous tensor of shape [" + joined(shape) +
      "] and dtype " + torch::headeronly::toString(dtype) + ", got shape [" + joined(got) +
      "] and dtype " + torch::headeronly::toString(tensor.scalar_type()));
}

template <typename T>
const T* data(const Tensor& tensor) {
  return static_cast<const T*>(tensor.const_data_ptr());
}

template <typename T>
T* mutable_data(const Tensor& tensor) {
  return static_cast<T*>(tensor.mutable_data_ptr());
}

}  // namespace consistentee
