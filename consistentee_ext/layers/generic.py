"""A Hugging Face module that runs as it is, where no family reads its weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from consistentee_ext.inputs import PackedInputs
from consistentee_ext.layers.hooks import listen
from consistentee_ext.layers.packed_pass import NoRowLeft, PackedPass, Path
from consistentee_ext.ops import LayerOps
from consistentee_ext.packed import InputLimits, PackedBatch


@dataclass(frozen=True)
class GenericStack:
    """A module in the place of a `Stack`: its own layers on packed rows, all else of it padded.

    Attributes:
        module: a sequence classifier, whose output has ``logits [B, C]``, or an encoder, whose
            output has ``last_hidden_state [B, S, H]``; its layers are hooked.
        is_classifier: which of the two.
        num_layers: L, how often a pass calls a layer.
        limits: which inputs it takes.
        padding_id: what it is padded with.
        takes_types: whether it takes segment ids.
        axes: see `PackedPass`.
    """

    module: nn.Module
    is_classifier: bool
    num_layers: int
    limits: InputLimits
    padding_id: int
    takes_types: bool
    axes: dict[Path, int | None]

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        return next(self.module.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Of its hidden states."""
        return next(self.module.parameters()).dtype

    def __call__(
        self,
        inputs: PackedInputs,
        ops: LayerOps,
        leave: Callable[[int, PackedBatch], PackedBatch],
        learn: bool = False,
    ) -> PackedBatch:
        """What the module says of the rows that are left: their last hidden states, or, of a
        classifier, their logits, each as a row of one token.

        `leave` and `learn` are as in `PackedPass`.
        """
        inputs = inputs.to(self.device)
        run = PackedPass(inputs, self.num_layers, ops, leave, self.axes, learn)
        try:
            output = listen(self.module, self.padded(inputs), run)
        except NoRowLeft:
            return PackedBatch(torch.empty(0, 0), inputs.cu_seqlens[:1], inputs.row_ids[:0])
        if not self.is_classifier:
            return run.pack(output.last_hidden_state)
        rows = torch.arange(len(run.row_ids) + 1, dtype=torch.int32, device=self.device)
        return PackedBatch(output.logits.float(), rows, run.row_ids)

    def padded(self, inputs: PackedInputs) -> dict[str, Any]:
        """The inputs of the module, ``[B, S]``, padded on the right."""
        lengths = inputs.cu_seqlens.diff()
        mask = torch.arange(inputs.max_length, device=lengths.device) < lengths[:, None]

        def pad(tokens: Tensor, filling: int) -> Tensor:
            return tokens.new_full(mask.shape, filling).masked_scatter_(mask, tokens)

        padded = {
            "input_ids": pad(inputs.ids, self.padding_id),
            "attention_mask": mask.long(),
        }
        if self.takes_types:
            padded["token_type_ids"] = pad(inputs.types, 0)
        return padded
