// Qualifiers of functions that run on the host and on a CUDA device.
#pragma once

// `static`: every object file keeps its own copy. Kernels are compiled once for each instruction
// set, and the linker must never hand a copy that uses AVX-512 to a caller that may not.
#ifdef __CUDACC__
#define CONSISTENTEE_INLINE static __host__ __device__ __forceinline__
#else
#define CONSISTENTEE_INLINE static inline
#endif

// Shared memory of a block whose size the launch states. A run of the kernels on the host defines it
// otherwise.
#if defined(__CUDACC__) && !defined(CONSISTENTEE_DYNAMIC_SHARED)
#define CONSISTENTEE_DYNAMIC_SHARED(name) extern __shared__ float name[]
#endif
