// The pybind11 module consistentee_ext._C: build_info(). Importing it also registers the ops.
//
// It is a file of its own because pybind11 binds it to one version of Python, while the ops bind to
// nothing but the stable ABI of LibTorch: neither file can come to depend on what the other includes.

#include <pybind11/pybind11.h>

#include "cpu/linear/int8_product.h"
#include "cpu/simd.h"

namespace py = pybind11;

namespace {

py::dict build_info() {
  py::dict info;
  info["version"] = CONSISTENTEE_VERSION;
  info["compiler"] = CONSISTENTEE_COMPILER;
  info["cxx_flags"] = CONSISTENTEE_CXX_FLAGS;
  info["simd_level"] = consistentee::simd_level();
  info["int8_product"] = consistentee::has_int8_product();
  info["torch_version"] = CONSISTENTEE_TORCH_VERSION;
  info["stable_abi_target"] = "2.10";
#ifdef CONSISTENTEE_CUDA_VERSION
  info["cuda_version"] = CONSISTENTEE_CUDA_VERSION;
  info["cuda_architectures"] = py::str(CONSISTENTEE_CUDA_ARCHITECTURES).attr("split")();
#else
  info["cuda_version"] = py::none();
  info["cuda_architectures"] = py::none();
#endif
  return info;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() =
      "Native operators of consistentee; importing the module registers torch.ops.consistentee.";
  m.def(
      "build_info",
      &build_info,
      "How this module was built, and the SIMD level it runs at. The CUDA entries are None where "
      "the CUDA library was left out.");
}
