// What an exit is made of: pooling, decision, and the batch of the rows that stay.
#pragma once

#include <optional>
#include <tuple>

#include "cpu/batch.h"

namespace consistentee {

// hidden, cu_seqlens and row_ids of a packed batch.
using PackedRows = std::tuple<Tensor, Tensor, Tensor>;

// The mean of each row's tokens [B, H].
Tensor mean_pool(const Tensor& hidden, const Tensor& cu_seqlens);

// The first token of each row, or the last, [B, H]; a row must have one.
Tensor one_token(const Batch& batch, const Tensor& hidden, bool last);

// Where the first and the second text of each row begin, [2B+1]: `first_lengths` [N] int32 are those of
// the first ones, by number of row.
Tensor segment_offsets(
    const Tensor& cu_seqlens, const Tensor& row_ids, const Tensor& first_lengths);

// (u, v, |u - v|, u * v) [B, 4H] of texts [2B, H] at offsets [2B+1].
Tensor compare_texts(const Tensor& texts, const Tensor& offsets);

// The rows whose `keep` byte is not zero, in memory of their own.
PackedRows compact_rows(
    const Batch& batch, const Tensor& hidden, const Tensor& row_ids, const uint8_t* keep);

// The op exit_step with all but `pooled` checked; nothing where every row stays.
std::optional<PackedRows> exit_rows(
    const Batch& batch,
    const Tensor& hidden,
    const Tensor& row_ids,
    const Tensor& pooled,
    const ExitHead& head,
    const ExitDecision& decision,
    const ExitResults& results);

}  // namespace consistentee
