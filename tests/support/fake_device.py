"""A device's ops without one: the reference's, counted as those of a GPU would be."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch

from consistentee_ext.ops import device_attention, reference
from consistentee_ext.segments import compare, pair_up, segment_offsets

# Of each device op, as csrc/cuda launches them; `copy_rows` is not needed where all leave.
LAUNCHES = {"add_norm": 1, "add_norm_pool": 1, "exit_step_async": 2}


class Device:
    """Stands in for a GPU: reference ops of the device's names, and a count of what they cost."""

    def __init__(self) -> None:
        self.launches: Counter[str] = Counter()
        self.tokens: list[int] = []
        self.waits: list[int] = []  # for each wait, how many exit steps were launched after it

    # the reference's own: no kernels of ours
    embed = staticmethod(reference.embed)
    linear = staticmethod(reference.linear)

    def attention(self, *arguments: Any) -> torch.Tensor:
        return device_attention.attention(*arguments)

    def add_norm(self, hidden: torch.Tensor, *rest: Any) -> torch.Tensor:
        self.launches["add_norm"] += LAUNCHES["add_norm"]
        with torch._C.DisableTorchFunction():  # the op's own work is no wait of the host
            return hidden.copy_(reference.add_norm(hidden, *rest))

    def add_norm_pool(
        self,
        hidden,
        residual,
        weight,
        bias,
        eps,
        cu_seqlens,
        most,
        pooling,
        tickets,
        row_ids=None,
        first_lengths=None,
    ):
        self.launches["add_norm_pool"] += LAUNCHES["add_norm_pool"]
        with torch._C.DisableTorchFunction():
            assert int(cu_seqlens.diff().max()) <= most
            assert not tickets.any()
            self.tokens.append(len(hidden))
            hidden.copy_(reference.add_norm(hidden, residual, weight, bias, eps))
            # An absent row has no tokens: its mean is undefined, its first token is another's.
            known = hidden if pooling == "cls" else hidden[: int(cu_seqlens[-1])]
            if pooling != "pair":
                return reference.pool(known, cu_seqlens, pooling)
            offsets = segment_offsets(cu_seqlens, first_lengths[row_ids])
            pair = pair_up(reference.pool(known, offsets, "mean"), offsets)
            return compare(*pair.chunk(2, dim=-1))

    def exit_step_async(self, batch, pooled, weights, decision, results, tickets, totals, out):
        self.launches["exit_step_async"] += LAUNCHES["exit_step_async"]
        with torch._C.DisableTorchFunction():
            assert not tickets.any()
            arguments = (batch, pooled, weights, decision, results, tickets, totals, out)
            reference.exit_step_async(*arguments)
