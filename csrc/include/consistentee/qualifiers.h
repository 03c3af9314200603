// Qualifiers of functions that run on the host and on a CUDA device.
#pragma once

// `static`: every object file keeps its own copy. Kernels are compiled once for each instruction
// set, and the linker must never hand a copy that uses AVX-512 to a caller that may not.
#ifdef __CUDACC__
#define CONSISTENTEE_INLINE static __host__ __device__ __forceinline__
#else
#define CONSISTENTEE_INLINE static inline
#endif
