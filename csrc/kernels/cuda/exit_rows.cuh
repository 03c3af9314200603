// The exit step on the device: a block decides a row, and the block that ends last plans where the
// rows that stay go. The pooler's product came before (cuBLAS), the copy comes after (copy_rows).
#pragma once

#include "kernels/cuda/plan.cuh"
#include "kernels/cuda/warp.cuh"
#include "kernels/exit_head.h"

namespace consistentee {

constexpr int kExitThreads = 256;

template <typename scalar_t>
struct ExitRows {
  const scalar_t* pooled;     // [B, H], the pooler's product before tanh
  const int32_t* cu_seqlens;  // [B + 1]
  const int64_t* row_ids;     // [B], -1 where no row is
  int64_t rows;               // B
  bool* keep;                 // [B], written
  int32_t* tickets;           // [1], 0 before and after: how many blocks have ended
};

// Bytes of shared memory a block needs: state, logits, the policy's hidden layer, statistics.
inline int64_t exit_rows_memory(const ExitHead& head) {
  return static_cast<int64_t>(sizeof(float)) *
         (head.hidden_size + head.classes + head.policy_size + kNumStatistics);
}

// Prediction of C logits in shared memory, by one warp.
static __device__ __forceinline__ Prediction
warp_predict(const float* logits, int classes, int lane) {
  const int label = warp_argmax(logits, classes, -1, lane);
  if (classes == 1) return only_class(logits[0]);
  const int second = warp_argmax(logits, classes, label, lane);
  const float highest = logits[label];
  float total = 0.0f, weighted = 0.0f;
  for (int c = lane; c < classes; c += kWarp) {
    const float shifted = logits[c] - highest;
    const float e = exp_approx(shifted);
    total += e;
    weighted += e * shifted;
  }
  return prediction_of(logits, classes, label, second, warp_sum(total), warp_sum(weighted));
}

// Classifies and decides one row; the whole block calls it. `shared` holds exit_rows_memory(head) bytes.
template <typename scalar_t>
static __device__ void exit_row(
    const scalar_t* pooled,
    const ExitHead& head,
    const ExitDecision& decision,
    const ExitResults& results,
    int64_t row_id,
    bool* keep,
    float* shared) {
  const int thread = static_cast<int>(threadIdx.x), lane = thread % kWarp, warp = thread / kWarp;
  constexpr int kWarps = kExitThreads / kWarp;
  const int64_t size = head.hidden_size;
  const int classes = static_cast<int>(head.classes);
  float* state = shared;
  float* logits = state + size;
  float* inner = logits + classes;
  float* statistics = inner + head.policy_size;

  for (int64_t h = thread; h < size; h += kExitThreads)
    state[h] = activate(head.activation, to_float(pooled[h]));
  __syncthreads();
  for (int c = warp; c < classes; c += kWarps) {
    const float z = warp_dot(head.classifier_weight + c * size, state, size, lane);
    if (lane == 0) logits[c] = z + head.classifier_bias[c];
  }
  __syncthreads();
  Prediction prediction = {};
  if (warp == 0) {
    prediction = warp_predict(logits, classes, lane);
    if (lane == 0) write_statistics(prediction, results.labels[row_id], statistics);
  }
  float probability = 1.0f;
  if (uses_policy(head, decision)) {
    const int64_t read = reads_state(head.policy_input) ? size : 0;
    const int64_t features = policy_features(head.policy_input, size);
    __syncthreads();
    for (int64_t p = warp; p < head.policy_size; p += kWarps) {
      const float* weight = head.dense_weight + p * features;
      float z = warp_dot(weight, state, read, lane);
      if (lane == 0) {
        for (int64_t k = read; k < features; ++k) z += weight[k] * statistics[k - read];
        inner[p] = head.score_weight[p] * gelu(z + head.dense_bias[p]);
      }
    }
    __syncthreads();
    if (warp == 0) {
      float score = 0.0f;
      for (int64_t p = lane; p < head.policy_size; p += kWarp) score += inner[p];
      probability = sigmoid(warp_sum(score) + head.score_bias[0]);
    }
  }
  if (thread == 0) {
    *keep = decide_row(decision, results, row_id, logits, classes, prediction, probability);
  }
}

// Grid (B): exit_rows_memory(head) bytes of shared memory.
template <typename scalar_t>
static __global__ void __launch_bounds__(kExitThreads) exit_rows(
    ExitRows<scalar_t> batch,
    ExitHead head,
    ExitDecision decision,
    ExitResults results,
    SurvivorPlan plan) {
  CONSISTENTEE_DYNAMIC_SHARED(shared);
  __shared__ bool ends_last;
  const int64_t row = blockIdx.x, row_id = batch.row_ids[row];
  if (row_id >= 0) {
    const scalar_t* pooled = batch.pooled + row * head.hidden_size;
    exit_row(pooled, head, decision, results, row_id, batch.keep + row, shared);
  } else if (threadIdx.x == 0) {
    batch.keep[row] = false;
  }
  if (threadIdx.x == 0) {
    __threadfence();  // the row's decision is seen before its block counts as ended
    ends_last = atomicAdd(batch.tickets, 1) == static_cast<int32_t>(gridDim.x) - 1;
  }
  __syncthreads();
  if (!ends_last) return;
  __threadfence();
  plan_survivors<kExitThreads>(batch.keep, batch.cu_seqlens, batch.row_ids, batch.rows, plan);
  if (threadIdx.x == 0) *batch.tickets = 0;
}

}  // namespace consistentee
