// The instruction set the CPU kernels use, chosen once when the library is loaded.
#pragma once

namespace consistentee {

// "avx512", "avx2" or "baseline". CONSISTENTEE_SIMD in the environment lowers it, never raises it.
const char* simd_level();

// Whether the kernels by tiles can run: the processor has AMX, and the system lets this process use it.
bool has_tiles();

}  // namespace consistentee
