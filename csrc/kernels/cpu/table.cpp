// The table of kernels. This file is compiled once for each instruction set, with CONSISTENTEE_SIMD
// naming it: the loops are left to the compiler's vectoriser, so one text serves all of them.

#include "kernels/cpu/table.h"
#include "kernels/cpu/attend_head.h"
#include "kernels/cpu/exit_rows.h"
#include "kernels/cpu/few_rows_tiles.h"
#include "kernels/cpu/mean_rows.h"
#include "kernels/cpu/norm.h"
#include "kernels/cpu/place.h"
#include "kernels/cpu/quantize.h"

#define CONSISTENTEE_STRING_(x) #x
#define CONSISTENTEE_STRING(x) CONSISTENTEE_STRING_(x)

namespace consistentee::CONSISTENTEE_SIMD {
namespace {

template <typename scalar_t>
constexpr Kernels<scalar_t> kKernels{
    exit_rows<scalar_t>,
    mean_rows<scalar_t>,
    compare_rows<scalar_t>,
    attend_head<scalar_t>,
    place_heads<scalar_t>,
    add_norm_tokens<scalar_t>,
    norm_tokens<scalar_t>,
    add_elements<scalar_t>,
    multiply_elements<scalar_t>,
    embed_tokens<scalar_t>,
    quantize_tokens<scalar_t>,
    finish_tokens<scalar_t>,
    requantize_tokens<scalar_t>,
    multiply_few_rows<scalar_t>,
};

}  // namespace

extern const CpuKernels kernels;
const CpuKernels kernels{
    CONSISTENTEE_STRING(CONSISTENTEE_SIMD),
    attention_scratch,
    kKernels<float>,
    kKernels<BFloat16>,
    kKernels<Half>,
    kTileKernels,
};

}  // namespace consistentee::CONSISTENTEE_SIMD
