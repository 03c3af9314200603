// The schema of every op. Letters: B rows, T packed tokens, H hidden size, C classes, P policy size,
// F policy features, N rows the caller gave. consistentee_ext/ops.py is the documented way in.

#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(consistentee, m) {
  // Matrices [B, S] of int64 or int32, a mask also of bool; without mask all are tokens, without segments all are
  // 0 -> ids, types, positions [T] int64, cu_seqlens [B+1] int32, row_ids [B] int64, longest first.
  m.def(
      "pack(Tensor input_ids, Tensor? attention_mask, Tensor? token_type_ids, int vocab_size,"
      " int type_vocab_size, int max_positions) -> (Tensor, Tensor, Tensor, Tensor, Tensor)");

  // ids, types, positions [T] int64, tables [entries, H] -> [T, H]: layer norm of the three
  // embeddings' sum.
  m.def(
      "embed(Tensor ids, Tensor types, Tensor positions, Tensor word_table, Tensor type_table,"
      " Tensor position_table, Tensor weight, Tensor bias, float eps) -> Tensor");

  // x [T, I], weight [O, I] packed for oneDNN, bias [O] -> f(x W^T + b) [T, O]; oneDNN's names of f
  // and of its variant.
  m.def("linear(Tensor x, Tensor weight, Tensor bias, str activation, str algorithm) -> Tensor");

  // query [Tq, H], key and value [T, H], offsets [B+1] int32 -> [Tq, H]. Rows of the three may lie
  // apart.
  m.def(
      "attention(Tensor query, Tensor key, Tensor value, Tensor query_offsets,"
      " Tensor key_offsets, int num_heads) -> Tensor");

  // hidden [T, H] becomes the layer norm of hidden + residual.
  m.def(
      "add_norm_(Tensor(a!) hidden, Tensor residual, Tensor weight, Tensor bias, float eps)"
      " -> ()");

  // The same where an exit follows: returns the rows' pooling [B, H] as well, the mean of their
  // tokens or the first. No row has more than max_length tokens. Counters [B] int32 are 0 before and
  // after.
  m.def(
      "add_norm_pool_(Tensor(a!) hidden, Tensor residual, Tensor weight, Tensor bias, float eps,"
      " Tensor cu_seqlens, int max_length, bool mean, Tensor(b!) counters) -> Tensor");

  // hidden [T, H], cu_seqlens [B+1] int32 -> [B, H]: the mean of each row's tokens.
  m.def("mean_pool(Tensor hidden, Tensor cu_seqlens) -> Tensor");

  // hidden [T, H], cu_seqlens [B+1] int32, row_ids [B] int64, keep [B] bool -> the same of the rows
  // that are kept, in their order.
  m.def(
      "compact(Tensor hidden, Tensor cu_seqlens, Tensor row_ids, Tensor keep)"
      " -> (Tensor, Tensor, Tensor)");

  // pooled [B, H] is the pooler's product before tanh; head weights and results are float32.
  // Returns hidden, cu_seqlens and row_ids of the rows that stay; where all of them do, the three
  // are without elements: the caller's own are what stays, and nothing is copied.
  m.def(
      "exit_step(Tensor hidden, Tensor cu_seqlens, Tensor row_ids, Tensor pooled,"
      " Tensor classifier_weight, Tensor classifier_bias, Tensor? dense_weight,"
      " Tensor? dense_bias, Tensor? score_weight, Tensor? score_bias, int policy_input,"
      " int criterion, float threshold, int layer, int max_streak, bool last,"
      " Tensor(a!) logits, Tensor(b!) exit_layers, Tensor(c!) exit_scores, Tensor(d!) labels,"
      " Tensor(e!) streaks) -> (Tensor, Tensor, Tensor)");

  // The same for a device that the host does not wait for: how many rows stay, B', and tokens, T',
  // is written to totals [2] int32, on the device or pinned. The results have room for all rows:
  // cu_seqlens goes on with T', row_ids with -1, which is nobody's. Counters as above.
  m.def(
      "exit_step_ahead(Tensor hidden, Tensor cu_seqlens, Tensor row_ids, Tensor pooled,"
      " Tensor classifier_weight, Tensor classifier_bias, Tensor? dense_weight,"
      " Tensor? dense_bias, Tensor? score_weight, Tensor? score_bias, int policy_input,"
      " int criterion, float threshold, int layer, int max_streak, bool last,"
      " Tensor(a!) logits, Tensor(b!) exit_layers, Tensor(c!) exit_scores, Tensor(d!) labels,"
      " Tensor(e!) streaks, Tensor(f!) counters, Tensor(g!) totals) -> (Tensor, Tensor, Tensor)");

  // A BERT encoder and its exits, weights packed for oneDNN, laid out once for `classify`: its
  // number, until `free_encoder`.
  //
  // embeddings: word, segment and position table, norm weight and bias. layers: of each layer weight
  // and bias of queries, keys and values together, attention output, its norm, up, down, and the
  // output norm; where the last layer is to be computed for first tokens alone, its queries stand
  // alone, and its keys and values at the very end. exits: of each exit layer weight and bias of
  // pooler and classifier and, with a policy, of its dense layer and score; the last has none.
  m.def(
      "new_encoder(Tensor[] embeddings, Tensor[] layers, int num_heads, float eps, str activation,"
      " str algorithm, Tensor[] exits, int[] exit_layers, bool mean_pooling, int policy_input)"
      " -> int");
  m.def("free_encoder(int encoder) -> ()");

  // A whole pass over the tokens `pack` gives, exits and all: nothing of it waits for Python, and a
  // batch that has lost all its rows runs no further. Thresholds are one an exit layer.
  m.def(
      "classify(Tensor ids, Tensor types, Tensor positions, Tensor cu_seqlens, Tensor row_ids,"
      " int encoder, float[] thresholds, int criterion, Tensor(a!) logits, Tensor(b!) exit_layers,"
      " Tensor(c!) exit_scores, Tensor(d!) labels, Tensor(e!) streaks) -> ()");
}
