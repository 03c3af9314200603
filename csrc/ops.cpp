// The schema of every op. Letters: B rows, T packed tokens, H hidden size, C classes, P policy size,
// F policy features, N rows the caller gave, E exit layers. consistentee_ext/ops is the way in.

#include <torch/csrc/stable/library.h>

// Weights of an exit head, all float32; those of a policy are all there or none is. Numbers of
// policy_input and state_activation as in kernels/exit_head.h; multi_label: labels are independent.
#define HEAD                                                                                    \
  "Tensor classifier_weight, Tensor classifier_bias, Tensor? dense_weight, Tensor? dense_bias," \
  " Tensor? score_weight, Tensor? score_bias, int policy_input, int state_activation, bool "    \
  "multi_label"
// How an attention differs from BERT's, as AttentionForm in consistentee_ext/weights.py has it: P the
// longest row, d the head size, R buckets, a multiple of 16; all tables float32, buckets int32.
#define FORM                                                                                    \
  "int? num_kv_heads=None, float? scale=None, int? low=None, int? high=None, Tensor? cos=None," \
  " Tensor? sin=None, Tensor? bias=None, Tensor? relative_keys=None, Tensor? relative_queries"  \
  "=None, Tensor? buckets=None, Tensor? query_norm=None, float query_norm_eps=0.0, Tensor? "    \
  "key_norm=None, float key_norm_eps=0.0, bool last_queries=False"
// How an exit layer decides: thresholds [N] float32; numbers of criteria as in kernels/score.h.
#define DECISION "int criterion, Tensor thresholds, int layer, int max_streak, bool last"
// Written in place: logits [N, C] float32 and the rest [N], int64, float32, int32, int32.
#define RESULTS                                                                           \
  "Tensor(a!) logits, Tensor(b!) exit_layers, Tensor(c!) exit_scores, Tensor(d!) labels," \
  " Tensor(e!) streaks"

STABLE_TORCH_LIBRARY(consistentee, m) {
  // Matrices [B, S] of int64 or int32, a mask also of bool; without mask all are tokens, without
  // segments all are 0 -> ids, types, positions [T] int64, cu_seqlens [B+1] int32, row_ids [B] int64,
  // longest first. A token's position is its column, from the row's first token on, or, with padding_id,
  // padding_id plus how many ids up to it differ from padding_id (padding_id itself for a token that
  // has this id). With by_place a row has no masked tokens inside. Tokens of trailing_id at
  // the end of a row are dropped, all but the row's first.
  m.def(
      "pack(Tensor input_ids, Tensor? attention_mask, Tensor? token_type_ids, *, int vocab_size,"
      " int type_vocab_size, int num_positions, int? padding_id, bool by_place,"
      " int? trailing_id)"
      " -> (Tensor, Tensor, Tensor, Tensor, Tensor)");

  // ids, types, positions [T] int64, tables [entries, H] -> [T, H]: layer norm of the three
  // embeddings' sum.
  m.def(
      "embed(Tensor ids, Tensor types, Tensor positions, *, Tensor word_table, Tensor type_table,"
      " Tensor position_table, Tensor weight, Tensor bias, float eps) -> Tensor");

  // x [T, I], weight [O, I] prepacked for oneDNN, or as it is where rows are few, bias [O] ->
  // f(x W^T + b) [T, O]; f is none, gelu, gelu_pytorch_tanh, relu, silu or tanh. With scale [O], weights are integers of 8 bits to be
  // multiplied by it, scale and bias are float32, and each row of x is rounded to integers from 0 to
  // 2 levels + 1, by a scale and a centre of its own; levels is 127, or 63 without VNNI.
  m.def(
      "linear(Tensor x, Tensor weight, Tensor? bias, *, str activation, Tensor? scale=None,"
      " int levels=0) -> Tensor");

  // query [Tq, heads * d], key and value [T, kv_heads * d], offsets [B+1] int32 -> [Tq, heads * d].
  // Tokens of the three may lie apart in memory.
  m.def(
      "attention(Tensor query, Tensor key, Tensor value, *, Tensor query_offsets,"
      " Tensor key_offsets, int num_heads, " FORM ") -> Tensor");

  // hidden [T, H] becomes the layer norm of hidden + residual.
  m.def(
      "add_norm_(Tensor(a!) hidden, Tensor residual, *, Tensor weight, Tensor bias, float eps)"
      " -> ()");

  // The same where an exit follows: returns the rows' pooling as well, the mean of their tokens or the
  // first [B, H], or the comparison (u, v, |u - v|, u * v) [B, 4H] of the means of their two texts:
  // of pairs alone row_ids [B] int64 and first_lengths [N] int32 are read. No row has more than
  // max_length tokens. Tickets [B] int32 are 0 before and after.
  m.def(
      "add_norm_pool_(Tensor(a!) hidden, Tensor residual, *, Tensor weight, Tensor bias, float eps,"
      " Tensor cu_seqlens, int max_length, str pooling, Tensor(b!) tickets, Tensor? row_ids=None,"
      " Tensor? first_lengths=None) -> Tensor");

  // hidden [T, H], cu_seqlens [B+1] int32 -> [B, H]: the mean of each row's tokens.
  m.def("mean_pool(Tensor hidden, Tensor cu_seqlens) -> Tensor");

  // pooled [B, H] is the pooler's product before the activation. Returns hidden, cu_seqlens and
  // row_ids of the rows that stay; where all of them do, three tensors without elements: the caller's
  // own are what stays, and nothing is copied.
  m.def(
      "exit_step(Tensor hidden, Tensor cu_seqlens, Tensor row_ids, Tensor pooled, *, " HEAD
      ", " DECISION ", " RESULTS ") -> (Tensor, Tensor, Tensor)");

  // The same on a device that the host does not wait for: how many rows stay, B', and tokens, T', is
  // written to totals [2] int32, on the device or pinned. The rows that stay are written to the three
  // that are named out, which have room for all: unused entries of out_cu_seqlens become T', of
  // out_row_ids -1. Tickets as above. Unless it removes, all rows keep their places: hidden and
  // cu_seqlens stay what they are, out_row_ids becomes row_ids with -1 for those that leave.
  m.def(
      "exit_step_async(Tensor hidden, Tensor cu_seqlens, Tensor row_ids, Tensor pooled, *, " HEAD
      ", " DECISION ", " RESULTS
      ", Tensor(f!) tickets, Tensor(g!) totals, Tensor(h!) out_hidden, Tensor(i!) out_cu_seqlens,"
      " Tensor(j!) out_row_ids, bool removes=True) -> ()");

  // An engine: an embedding, blocks and exits, laid out once for many passes. Its number, until
  // engine_free. Nothing can be added once it has run.
  // Tables [entries, E], with a product from E to H behind the norm of their sum, or before it. A norm
  // without bias is a root-mean-square norm, here and below.
  m.def(
      "engine_create(*, Tensor word_table, Tensor? type_table, Tensor? position_table,"
      " Tensor? norm_weight, Tensor? norm_bias, float norm_eps, Tensor? product,"
      " Tensor? product_bias, bool product_first, int hidden_size) -> int");

  // One more block, weights as `linear` takes them: x = norm(x + attention(x)), x = norm(x + mlp(x));
  // with norm_first x = x + out_norm(attention(norm(x))), x = x + out_norm(mlp(norm(x))).
  // mlp(x) is down(up(x)), with a gate down(gate(x) * up(x)).
  // `query` gives queries, keys and values side by side; with `key_value` it gives the queries alone
  // and the block, which must be the last, computes one token of each row alone, the first, or with
  // last_queries the last. A product with a scale [O] has weights of 8 bits, as above.
  m.def(
      "engine_add_block(int engine, *, Tensor query, Tensor? query_bias, Tensor? query_scale,"
      " Tensor? key_value, Tensor? key_value_bias, Tensor? key_value_scale, Tensor attention_out,"
      " Tensor? attention_out_bias, Tensor? attention_out_scale, int num_heads, int head_size,"
      " Tensor? attention_norm_weight, Tensor? attention_norm_bias, float attention_norm_eps,"
      " Tensor up, Tensor? up_bias, Tensor? up_scale, str up_activation, Tensor down,"
      " Tensor? down_bias, Tensor? down_scale, Tensor? gate, Tensor? gate_bias, Tensor? gate_scale,"
      " str gate_activation, Tensor mlp_norm_weight, Tensor? mlp_norm_bias, float mlp_norm_eps,"
      " bool norm_first, Tensor? attention_out_norm_weight, Tensor? attention_out_norm_bias,"
      " float attention_out_norm_eps, Tensor? mlp_out_norm_weight, Tensor? mlp_out_norm_bias,"
      " float mlp_out_norm_eps, " FORM ", int levels=0) -> ()");

  // The exit behind block `layer` (1-based), in rising order of layers: norm, pooling (cls, last, mean
  // or pair), pooler, norm of the state; norms_tokens and pools_states put norm and pooler before the
  // pooling.
  m.def(
      "engine_add_exit(int engine, *, int layer, str pooling, Tensor? pooler, Tensor? pooler_bias,"
      " str pooler_activation, bool pools_states, Tensor? norm_weight, Tensor? norm_bias,"
      " float norm_eps, bool norms_tokens, Tensor? state_norm_weight, Tensor? state_norm_bias,"
      " float state_norm_eps, " HEAD ") -> ()");

  // Runs blocks first to last - 1 with their exits, and returns hidden, cu_seqlens and row_ids of the
  // rows that have not left. A pass that begins with block 0 takes ids, types and positions as `pack`
  // gives them, any other one hidden [T, H]. Thresholds are [E, N] float32; first_lengths
  // [N] int32 are the lengths of the rows' first texts, with the separator, where an exit pools pairs.
  m.def(
      "engine_advance(int engine, int first, int last, *, Tensor? ids, Tensor? types,"
      " Tensor? positions, Tensor? hidden, Tensor cu_seqlens, Tensor row_ids, int criterion,"
      " Tensor thresholds, Tensor? first_lengths, " RESULTS ") -> (Tensor, Tensor, Tensor)");
  // An exit of a decoder behind block `layer` (1-based), in rising order of layers: a translator
  // [r, H] and [H, r], or none; a policy [P, H], [P], [1, P], [1], or linear [1, H], [1].
  m.def(
      "engine_add_token_exit(int engine, *, int layer, Tensor? down, Tensor? up,"
      " Tensor? dense_weight, Tensor? dense_bias, Tensor score_weight, Tensor score_bias) -> ()");

  // Prompts of R sequences, tokens [T] int64, prompt after prompt, cu_seqlens [R+1] int32, slots [R]
  // int64, into the cache of engine_step. Returns the last tokens' states behind the last norm [R, H].
  m.def(
      "engine_prefill(int engine, Tensor tokens, Tensor cu_seqlens, Tensor slots, *,"
      " Tensor(a!) keys, Tensor(b!) values, Tensor states, Tensor filled, Tensor norm_weight,"
      " float norm_eps) -> Tensor");

  // One token of each of R sequences, tokens, slots and positions [R] int64. The cache as
  // consistentee_ext/generation/cache.py has it: keys and values [L, N * U, K * d], states
  // [N * U, H], filled [E + 1, N] int64. Thresholds are [E] float32, 1 for no exit. Returns states
  // behind the last norm [R, H], and exit layers [R] int64.
  m.def(
      "engine_step(int engine, Tensor tokens, Tensor slots, Tensor positions, *, Tensor(a!) keys,"
      " Tensor(b!) values, Tensor(c!) states, Tensor(d!) filled, Tensor thresholds,"
      " Tensor norm_weight, float norm_eps) -> (Tensor, Tensor)");
  m.def("engine_free(int engine) -> ()");

  // A place in what is launched on the current stream of the device of `on`, to wait for. Whoever
  // records it releases it, waited for or not.
  m.def("event_record(Tensor on) -> int");
  m.def("event_wait(Tensor on, int event) -> ()");
  m.def("event_release(Tensor on, int event) -> ()");

  // An engine of a device, of BERT's blocks, whose weights are as torch.nn has them. The schema of
  // aten::_flash_attention_forward has flash_arguments. Costs say where removing rows from a batch
  // pays: us of a layer, and of a removal, by numbers of tokens that ascend from 0.
  m.def(
      "device_engine_create(*, int flash_arguments, float[] cost_tokens, float[] layer_costs,"
      " float[] removal_costs) -> int");

  // As engine_add_block; with `key_value` the last block computes the first token of each row alone.
  m.def(
      "device_engine_add_block(int engine, *, Tensor query, Tensor? query_bias, Tensor? key_value,"
      " Tensor? key_value_bias, Tensor attention_out, Tensor? attention_out_bias, int num_heads,"
      " int head_size, Tensor attention_norm_weight, Tensor attention_norm_bias,"
      " float attention_norm_eps, Tensor up, Tensor? up_bias, str up_activation, Tensor down,"
      " Tensor? down_bias, Tensor mlp_norm_weight, Tensor mlp_norm_bias, float mlp_norm_eps)"
      " -> ()");

  // As engine_add_exit: pooling (cls, mean or pair) and a product.
  m.def(
      "device_engine_add_exit(int engine, *, int layer, str pooling, Tensor pooler,"
      " Tensor? pooler_bias, " HEAD ") -> ()");

  // As engine_advance, of hidden [T, H]. The host waits for no more than the exit steps' counts,
  // totals [E, 2] int32, zeros, on the host: with `eager` for each, else for that of the exit before.
  // tickets [B] int32 are zeros, no row has more than max_length tokens. A last block with `key_value`
  // takes one_a_row [B+1] int32, the numbers from 0 on.
  m.def(
      "device_engine_advance(int engine, int first, int last, *, Tensor hidden, Tensor cu_seqlens,"
      " Tensor row_ids, int max_length, int criterion, Tensor thresholds, Tensor? first_lengths,"
      " " RESULTS
      ", Tensor(f!) tickets, Tensor(g!) totals, Tensor? one_a_row, bool eager)"
      " -> (Tensor, Tensor, Tensor)");
  m.def("device_engine_free(int engine) -> ()");
}
