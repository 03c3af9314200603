// The CPU kernels, one table an instruction set; the library picks one when it is loaded.
#pragma once

#include "consistentee/exit_head.h"
#include "consistentee/scalar.h"

namespace consistentee {

// Rows a kernel works on together: each weight is read once for all of them.
constexpr int64_t kRowBlock = 4;

template <typename scalar_t>
struct RowKernels {
  // Decides rows [begin, end) of pooled [B, H]; keep[row] is 1 where the row stays. `scratch` holds
  // exit_scratch(head) floats.
  void (*exit_rows)(
      const ExitHeadParams& head,
      const scalar_t* pooled,
      const int64_t* row_ids,
      int64_t begin,
      int64_t end,
      const ExitResults& results,
      uint8_t* keep,
      float* scratch);
  // Means over the tokens of rows [begin, end): [T, H] to out [B, H]. `scratch` holds H floats.
  void (*mean_rows)(
      const scalar_t* hidden,
      const int32_t* cu_seqlens,
      int64_t hidden_size,
      int64_t begin,
      int64_t end,
      scalar_t* out,
      float* scratch);
};

struct CpuKernels {
  const char* level;
  RowKernels<float> f32;
  RowKernels<BFloat16> bf16;
  RowKernels<Half> f16;
};

inline int64_t exit_scratch(const ExitHeadParams& head) {
  return kRowBlock * (head.hidden_size + head.classes + head.policy_size + kNumStatistics);
}

const CpuKernels& cpu_kernels();

}  // namespace consistentee
