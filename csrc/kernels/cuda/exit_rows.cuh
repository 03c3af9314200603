// The exit step on the device: a block decides a row, and the block that ends last plans where the
// rows that stay go. The pooler's product came before (cuBLAS), the copy comes after (copy_rows).
#pragma once

#include "kernels/cuda/plan.cuh"
#include "kernels/cuda/warp.cuh"
#include "kernels/exit_head.h"

namespace consistentee {

// What a row takes is the latency of its weights, which more warps have in flight; but many rows share
// the device.
constexpr int kExitThreads = 512;

template <typename scalar_t>
struct ExitRows {
  const scalar_t* pooled;     // [B, H], the pooler's product before tanh
  const int32_t* cu_seqlens;  // [B + 1]
  const int64_t* row_ids;     // [B], -1 where no row is
  int64_t rows;               // B
  bool* keep;                 // [B], written
  int32_t* tickets;           // [1], 0 before and after: how many blocks have ended
};

// Bytes of shared memory a block needs: state, logits, what the policy's units read in the state.
inline int64_t exit_rows_memory(const ExitHead& head) {
  return static_cast<int64_t>(sizeof(float)) * (head.hidden_size + head.classes + head.policy_size);
}

// Prediction of C logits in shared memory, by one warp.
static __device__ __forceinline__ Prediction
warp_predict_classes(const float* logits, int classes, int lane) {
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
  const float logit_margin = highest - logits[second];
  return prediction_of(label, classes, logit_margin, warp_sum(total), warp_sum(weighted));
}

static __device__ __forceinline__ Prediction
warp_predict(const ExitHead& head, const float* logits, int lane) {
  if (head.multi_label) return predict_set(logits, head.classes);
  return warp_predict_classes(logits, static_cast<int>(head.classes), lane);
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
  const bool policy = uses_policy(head, decision);
  const int64_t read = policy && reads_state(head.policy_input) ? size : 0;
  const int64_t features = policy_features(head.policy_input, size);

  for (int64_t h = thread; h < size; h += kExitThreads)
    state[h] = activate(head.activation, to_float(pooled[h]));
  __syncthreads();
  // All products with the state at once: the policy's do not wait for the prediction.
  const int products = classes + (read ? static_cast<int>(head.policy_size) : 0);
  for (int k = warp; k < products; k += kWarps) {
    const int p = k - classes;
    const float* weight =
        p < 0 ? head.classifier_weight + k * size : head.dense_weight + p * features;
    const float z = warp_dot(weight, state, size, lane);
    if (lane == 0) logits[k] = p < 0 ? z + head.classifier_bias[k] : z;
  }
  __syncthreads();
  if (warp != 0) return;

  const Prediction prediction = warp_predict(head, logits, lane);
  const bool agrees = agrees_with_last(head, results, row_id, logits, prediction);
  float probability = 1.0f;
  if (policy) {
    float statistics[kNumStatistics];
    write_statistics(prediction, agrees, statistics);
    float score = 0.0f;
    for (int64_t p = lane; p < head.policy_size; p += kWarp) {
      const float* weight = head.dense_weight + p * features + read;
      float z = read ? inner[p] : 0.0f;
      if (reads_prediction(head.policy_input)) {
#pragma unroll
        for (int k = 0; k < kNumStatistics; ++k) z += weight[k] * statistics[k];
      }
      score += head.score_weight[p] * gelu(z + head.dense_bias[p]);
    }
    // With this sum every lane has read the answer before, which thread 0 overwrites.
    probability = sigmoid(warp_sum(score) + head.score_bias[0]);
  }
  if (thread == 0) {
    *keep = decide_row(head, decision, results, row_id, logits, prediction, agrees, probability);
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
  if (plan.removes) {
    plan_survivors<kExitThreads>(batch.keep, batch.cu_seqlens, batch.row_ids, batch.rows, plan);
  } else {
    mark_survivors<kExitThreads>(batch.keep, batch.cu_seqlens, batch.row_ids, batch.rows, plan);
  }
  if (threadIdx.x == 0) *batch.tickets = 0;
}

}  // namespace consistentee
