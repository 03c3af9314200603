// The CPU kernels on raw memory, of every instruction set this machine has, beside plain loops in
// double precision. Buffers have exactly the size the kernels are promised: under AddressSanitizer
// one element too far is an error. `make sanitize` builds and runs it.

#include <cstdio>

#include "cpu/simd.h"
#include "cpu_kernels/attention.h"
#include "cpu_kernels/exits.h"
#include "cpu_kernels/integers.h"
#include "cpu_kernels/norms.h"
#include "cpu_kernels/products.h"
#include "kernels/cpu/table.h"

namespace consistentee {
namespace {

template <typename scalar_t>
void test_all(const CpuKernels& table, const Kernels<scalar_t>& kernels, double tolerance) {
  test_attention(table, kernels, tolerance);
  test_places(kernels, tolerance);
  test_norms(kernels, false, tolerance);
  test_norms(kernels, true, tolerance);
  for (const int64_t threshold_stride : {0, 1}) {
    for (const bool multi_label : {false, true}) {
      test_exit_rows(kernels, StateActivation::kTanh, threshold_stride, multi_label);
      test_exit_rows(kernels, StateActivation::kRelu, threshold_stride, multi_label);
      test_exit_rows(kernels, StateActivation::kNone, threshold_stride, multi_label);
    }
  }
  test_means(kernels, tolerance);
  test_few_rows(kernels, tolerance);
  test_integers(kernels, tolerance);
}

}  // namespace
}  // namespace consistentee

int main() {
  const auto& table = consistentee::cpu_kernels();
  consistentee::test_all(table, table.f32, 1e-4);
  consistentee::test_all(table, table.bf16, 2e-2);
  consistentee::test_all(table, table.f16, 4e-3);
  if (consistentee::has_tiles()) consistentee::test_tiles(table.tiles);
  std::printf("%s kernels: passed\n", table.level);
}
