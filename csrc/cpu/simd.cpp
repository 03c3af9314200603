#include "cpu/simd.h"

#include <cstdlib>
#include <cstring>

#include "kernels/cpu/table.h"

namespace consistentee {

namespace baseline {
extern const CpuKernels kernels;
}
#ifdef CONSISTENTEE_HAVE_X86_SIMD
namespace avx2 {
extern const CpuKernels kernels;
}
namespace avx512 {
extern const CpuKernels kernels;
}
#endif

namespace {

const CpuKernels& choose() {
#ifdef CONSISTENTEE_HAVE_X86_SIMD
  const char* limit = std::getenv("CONSISTENTEE_SIMD");
  const bool at_most_baseline = limit && std::strcmp(limit, "baseline") == 0;
  const bool at_most_avx2 = at_most_baseline || (limit && std::strcmp(limit, "avx2") == 0);
  const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool has_avx512 = has_avx2 && __builtin_cpu_supports("avx512f") &&
                          __builtin_cpu_supports("avx512bw") &&
                          __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (has_avx512 && !at_most_avx2) return avx512::kernels;
  if (has_avx2 && !at_most_baseline) return avx2::kernels;
#endif
  return baseline::kernels;
}

}  // namespace

const CpuKernels& cpu_kernels() {
  static const CpuKernels& chosen = choose();
  return chosen;
}

const char* simd_level() { return cpu_kernels().level; }

}  // namespace consistentee
