// The one place that knows the oddities of LibTorch's stable ABI: checks and tensor helpers.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <initializer_list>
#include <sstream>
#include <stdexcept>
#include <string>

namespace consistentee {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Python validates first (consistentee_ext/ops.py); these checks keep a direct call of the op from
// reading or writing out of bounds.
[[noreturn]] inline void fail(const std::string& message) { throw std::runtime_error(message); }

inline void check_tensor(
    const Tensor& tensor,
    const char* name,
    ScalarType dtype,
    std::initializer_list<int64_t> shape) {
  bool same = tensor.dim() == static_cast<int64_t>(shape.size()) && tensor.scalar_type() == dtype &&
              tensor.is_contiguous();
  std::ostringstream expected;
  int64_t dim = 0;
  for (int64_t size : shape) {
    same = same && tensor.size(dim) == size;
    expected << (dim++ ? ", " : "") << size;
  }
  if (same) return;
  std::ostringstream got;
  for (int64_t i = 0; i < tensor.dim(); ++i) got << (i ? ", " : "") << tensor.size(i);
  fail(
      std::string(name) + ": expected a contiguous tensor of shape [" + expected.str() +
      "] and dtype " + torch::headeronly::toString(dtype) + ", got shape [" + got.str() +
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
