// The CUDA kernels on the host: one C function a launch, with grid and shared memory as the comments
// of the kernels say. Each returns a message, or null where the launch succeeded.

#include "cuda_shim.h"
// after the shim, whose macros they need
#include "kernels/cuda/copy_rows.cuh"
#include "kernels/cuda/exit_rows.cuh"
#include "kernels/cuda/pool.cuh"

namespace consistentee {
namespace {

constexpr int kPlanThreads = kExitThreads;

// The plan alone, for a mask that is given.
__global__ void plan_only(
    const bool* keep,
    const int32_t* cu_seqlens,
    const int64_t* row_ids,
    int64_t rows,
    SurvivorPlan plan) {
  if (plan.removes) {
    plan_survivors<kPlanThreads>(keep, cu_seqlens, row_ids, rows, plan);
  } else {
    mark_survivors<kPlanThreads>(keep, cu_seqlens, row_ids, rows, plan);
  }
}

template <typename F>
const char* message_of(const F& f) {
  static std::string message;
  try {
    f();
    return nullptr;
  } catch (const std::exception& error) {
    message = error.what();
    return message.c_str();
  }
}

// dtype: 0 float32, 1 bfloat16, 2 float16.
template <typename F>
void dispatch(int dtype, const F& f) {
  if (dtype == 0) return f(float{});
#ifndef CONSISTENTEE_FLOAT_ONLY
  if (dtype == 1) return f(BFloat16{});
  if (dtype == 2) return f(Half{});
#endif
  throw std::runtime_error("dtype: expected 0, 1 or 2");
}

// The layer norm in a dtype that is not known before: AddNorm with its types erased.
struct Norm {
  void* hidden;
  const void* residual;
  const void* weight;
  const void* bias;
  int64_t hidden_size;
  float eps;

  template <typename scalar_t>
  AddNorm<scalar_t> as() const {
    return {
        static_cast<scalar_t*>(hidden),
        static_cast<const scalar_t*>(residual),
        static_cast<const scalar_t*>(weight),
        static_cast<const scalar_t*>(bias),
        hidden_size,
        eps};
  }
};

}  // namespace
}  // namespace consistentee

using namespace consistentee;
using cuda_shim::launch;

extern "C" {

// The sizes of the structs below, in the order of their first use: callers declare them again.
void struct_sizes(int64_t* out) {
  const int64_t sizes[] = {
      sizeof(SurvivorPlan),
      sizeof(ExitRows<float>),
      sizeof(ExitHead),
      sizeof(ExitDecision),
      sizeof(ExitResults),
      sizeof(AddNorm<float>),
      sizeof(RowPooling)};
  static_assert(sizeof(Norm) == sizeof(AddNorm<float>));
  std::memcpy(out, sizes, sizeof(sizes));
}

const char* run_plan(
    uint64_t seed,
    const bool* keep,
    const int32_t* cu_seqlens,
    const int64_t* row_ids,
    int64_t rows,
    const SurvivorPlan* plan) {
  return message_of(
      [&] { launch(seed, plan_only, 1, kPlanThreads, 0, keep, cu_seqlens, row_ids, rows, *plan); });
}

const char* run_copy_rows(
    uint64_t seed,
    const void* hidden,
    const int32_t* cu_seqlens,
    const int32_t* offsets,
    int64_t rows,
    int64_t token_bytes,
    int64_t splits,
    void* out) {
  return message_of([&] {
    const dim3 grid(static_cast<unsigned>(rows), static_cast<unsigned>(splits));
    launch(seed, copy_rows, grid, kCopyThreads, 0, hidden, cu_seqlens, offsets, token_bytes, out);
  });
}

const char* run_exit_rows(
    uint64_t seed,
    int dtype,
    const ExitRows<float>* batch,
    const ExitHead* head,
    const ExitDecision* decision,
    const ExitResults* results,
    const SurvivorPlan* plan) {
  return message_of([&] {
    dispatch(dtype, [&](auto element) {
      using scalar_t = decltype(element);
      const auto* pooled = reinterpret_cast<const scalar_t*>(batch->pooled);
      launch(
          seed,
          exit_rows<scalar_t>,
          static_cast<unsigned>(batch->rows),
          kExitThreads,
          exit_rows_memory(*head),
          ExitRows<scalar_t>{
              pooled, batch->cu_seqlens, batch->row_ids, batch->rows, batch->keep, batch->tickets},
          *head,
          *decision,
          *results,
          *plan);
    });
  });
}

const char* run_add_norm_tokens(
    uint64_t seed, int dtype, const Norm* norm, int64_t tokens, int warps) {
  return message_of([&] {
    dispatch(dtype, [&](auto element) {
      using scalar_t = decltype(element);
      launch(
          seed,
          add_norm_tokens<scalar_t>,
          static_cast<unsigned>((tokens + warps - 1) / warps),
          warps * kWarp,
          4 * warps * norm->hidden_size,
          norm->as<scalar_t>(),
          tokens);
    });
  });
}

const char* run_add_norm_pool(
    uint64_t seed,
    int dtype,
    const Norm* norm,
    const RowPooling* pooling,
    int64_t rows,
    int64_t splits,
    void* pooled,
    int warps) {
  return message_of([&] {
    dispatch(dtype, [&](auto element) {
      using scalar_t = decltype(element);
      launch(
          seed,
          add_norm_pool<scalar_t>,
          dim3(static_cast<unsigned>(rows), static_cast<unsigned>(splits)),
          warps * kWarp,
          4 * warps * norm->hidden_size,
          norm->as<scalar_t>(),
          *pooling,
          static_cast<scalar_t*>(pooled));
    });
  });
}

}  // extern "C"
