#include "cpu/simd.h"

#include <cstdlib>
#include <cstring>

#include "kernels/cpu/table.h"

#if defined(__x86_64__) && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

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

// Whether the processor multiplies tiles of bfloat16, and the kernel lets this process do so.
bool grants_tiles() {
#if defined(__x86_64__) && defined(__linux__)
  constexpr unsigned kTiles = 1u << 24, kBFloat16 = 1u << 22;
  constexpr long kRequest = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx)) return false;
  if (!(edx & kTiles) || !(edx & kBFloat16)) return false;
  return syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
#else
  return false;
#endif
}

}  // namespace

const CpuKernels& cpu_kernels() {
  static const CpuKernels& chosen = choose();
  return chosen;
}

const char* simd_level() { return cpu_kernels().level; }

bool has_tiles() {
  static const bool granted = cpu_kernels().tiles.multiply && grants_tiles();
  return granted;
}

}  // namespace consistentee
