// The schema of every op. Letters: B rows, T packed tokens, H hidden size, C classes, P policy size,
// F policy features, N rows the caller gave. consistentee_ext/ops.py is the documented way in.

#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(consistentee, m) {
  // ids, types, positions [T] int64, tables [entries, H] -> [T, H]: layer norm of the three
  // embeddings' sum.
  m.def(
      "embed(Tensor ids, Tensor types, Tensor positions, Tensor word_table, Tensor type_table,"
      " Tensor position_table, Tensor weight, Tensor bias, float eps) -> Tensor");

  // query [Tq, H], key and value [T, H], offsets [B+1] int32 -> [Tq, H]. Rows of the three may lie
  // apart.
  m.def(
      "attention(Tensor query, Tensor key, Tensor value, Tensor query_offsets,"
      " Tensor key_offsets, int num_heads) -> Tensor");

  // hidden [T, H] becomes the layer norm of hidden + residual.
  m.def(
      "add_norm_(Tensor(a!) hidden, Tensor residual, Tensor weight, Tensor bias, float eps)"
      " -> ()");

  // hidden [T, H], cu_seqlens [B+1] int32 -> [B, H]: the mean of each row's tokens.
  m.def("mean_pool(Tensor hidden, Tensor cu_seqlens) -> Tensor");

  // hidden [T, H], cu_seqlens [B+1] int32, row_ids [B] int64, keep [B] bool -> the same of the rows
  // that are kept, in their order.
  m.def(
      "compact(Tensor hidden, Tensor cu_seqlens, Tensor row_ids, Tensor keep)"
      " -> (Tensor, Tensor, Tensor)");

  // pooled [B, H] is the pooler's product before tanh; head weights and results are float32.
  // Returns hidden, cu_seqlens and row_ids of the rows that stay; where all of them do, hidden is
  // [0, H]: the caller's own is what stays, and nothing is copied.
  m.def(
      "exit_step(Tensor hidden, Tensor cu_seqlens, Tensor row_ids, Tensor pooled,"
      " Tensor classifier_weight, Tensor classifier_bias, Tensor? dense_weight,"
      " Tensor? dense_bias, Tensor? score_weight, Tensor? score_bias, int policy_input,"
      " int criterion, float threshold, int layer, int max_streak, bool last,"
      " Tensor(a!) logits, Tensor(b!) exit_layers, Tensor(c!) exit_scores, Tensor(d!) labels,"
      " Tensor(e!) streaks) -> (Tensor, Tensor, Tensor)");
}
