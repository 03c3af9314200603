"""The engine of a decoder: prompts and steps of sequences in the slots of a cache.

The interface, and the engine that calls op by op in PyTorch.
`consistentee_ext.generation.reference` is the specification. Letters: R sequences of a step, T
packed tokens, H hidden size, L layers, V vocabulary.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor
from typing_extensions import override

from consistentee_ext.generation.cache import SlotCache, allocate_cache
from consistentee_ext.generation.layer import Tokens, run_layer
from consistentee_ext.generation.weights import DecoderWeights
from consistentee_ext.ops import HostOps

PREFILL_TOKENS = 512  # read at a time: products are no faster with more, and memory is bounded


class Step(NamedTuple):
    """What a step says of R sequences.

    Attributes:
        logits: ``[R, V]`` float32, of the next token.
        exit_layers: ``[R]`` int64, in 1..L.
    """

    logits: Tensor
    exit_layers: Tensor


def check_logits(logits: Tensor) -> None:
    """Raise ValueError unless logits ``[R, V]`` are finite: a choice among others means nothing."""
    if not bool(logits.isfinite().all()):
        strange = logits[~logits.isfinite()]
        raise ValueError(f"model: expected finite logits, got {float(strange[0])}")


class DecoderEngine(ABC):
    """A decoder's weights, ready to run. It never changes: other exits make another engine.

    Sequences live in a cache, which any engine of the same weights may go on with.

    Args:
        weights: of the decoder.
        thresholds: by exit layer, in (0, 1]; no token leaves at layers that have none.
    """

    def __init__(self, weights: DecoderWeights, thresholds: Mapping[int, float]) -> None:
        self.weights = weights
        self.thresholds = thresholds

    @abstractmethod
    def with_thresholds(self, thresholds: Mapping[int, float]) -> DecoderEngine:
        """An engine of the same weights with these thresholds."""

    @abstractmethod
    def allocate(self, num_slots: int, num_positions: int) -> SlotCache:
        """An empty cache.

        Args:
            num_slots: how many sequences are decoded at a time.
            num_positions: tokens of each, at most; the last one of an answer is not read.

        Raises:
            RuntimeError: there is no memory for it.
        """

    def prefill(self, cache: SlotCache, ids: Tensor, cu_seqlens: Tensor, slots: Tensor) -> Tensor:
        """Read prompts at full depth; what was in their slots is gone.

        Args:
            cache: from `allocate`.
            ids: ``[T]`` int64, prompt after prompt.
            cu_seqlens: ``[R+1]`` int32, the offset of each prompt's first token, and T.
            slots: ``[R]`` int64, each once.

        Returns:
            ``[R, V]`` float32, the logits of the first answer tokens.

        Raises:
            ValueError: a prompt is longer than the cache's positions.
        """
        lengths = cu_seqlens.diff().long()
        cache.check_room(lengths)
        cache.lengths[slots] = lengths
        cache.filled[:, slots] = lengths
        with self._exactly():
            return self._prefill(cache, ids, cu_seqlens, slots)

    @abstractmethod
    def _prefill(
        self, cache: SlotCache, ids: Tensor, cu_seqlens: Tensor, slots: Tensor
    ) -> Tensor: ...

    def step(self, cache: SlotCache, tokens: Tensor, slots: Tensor) -> Step:
        """Read one more token of each of R sequences; each may leave behind an exit layer.

        Args:
            cache: with their prompts.
            tokens: ``[R]`` int64.
            slots: ``[R]`` int64, each once.

        Raises:
            ValueError: a sequence has no room for its token.
        """
        positions = cache.lengths[slots]
        cache.check_room(positions + 1)
        cache.lengths[slots] = positions + 1
        with self._exactly():
            return self._step(cache, tokens, slots, positions)

    @abstractmethod
    def _step(self, cache: SlotCache, tokens: Tensor, slots: Tensor, positions: Tensor) -> Step: ...

    @contextmanager
    def _exactly(self) -> Iterator[None]:
        """Without gradients, and in the weights' dtype also under autocast."""
        device = self.weights.stack.embedding.words.device.type
        with torch.inference_mode(), torch.autocast(device, enabled=False):
            yield


class EagerDecoderEngine(DecoderEngine):
    """Each layer is a few calls from Python; the host knows which tokens have left."""

    def __init__(
        self, weights: DecoderWeights, thresholds: Mapping[int, float], ops: HostOps
    ) -> None:
        super().__init__(weights, thresholds)
        self._ops = ops

    @override
    def with_thresholds(self, thresholds: Mapping[int, float]) -> EagerDecoderEngine:
        return EagerDecoderEngine(self.weights, thresholds, self._ops)

    @override
    def allocate(self, num_slots: int, num_positions: int) -> SlotCache:
        stack = self.weights.stack
        attention = stack.blocks[0].attention
        return allocate_cache(
            num_slots,
            num_positions,
            stack.num_layers,
            len(self.weights.exits) + 1,
            (attention.form.num_kv_heads or attention.num_heads) * attention.head_size,
            stack.embedding.words,
        )

    @override
    def _prefill(self, cache: SlotCache, ids: Tensor, cu_seqlens: Tensor, slots: Tensor) -> Tensor:
        logits = []
        for rows in _groups(cu_seqlens.diff().tolist()):
            first, last = int(cu_seqlens[rows.start]), int(cu_seqlens[rows.stop])
            offsets = cu_seqlens[rows.start : rows.stop + 1] - first
            logits.append(self._read(cache, ids[first:last], offsets, slots[rows]))
        return torch.cat(logits)

    def _read(self, cache: SlotCache, ids: Tensor, offsets: Tensor, slots: Tensor) -> Tensor:
        weights, ops, num_layers = self.weights, self._ops, self.weights.stack.num_layers
        hidden = self._embed(ids)
        tokens = Tokens.of_prompts(cache, slots, offsets)
        for layer in range(1, num_layers):
            hidden = run_layer(weights.stack, layer, hidden, tokens, cache, ops)
        hidden = run_layer(weights.stack, num_layers, hidden, tokens.last(), cache, ops)
        return weights.logits(weights.readout(num_layers, hidden, ops), ops)

    @override
    def _step(self, cache: SlotCache, tokens: Tensor, slots: Tensor, positions: Tensor) -> Step:
        weights, ops, num_layers = self.weights, self._ops, self.weights.stack.num_layers
        hidden = self._embed(tokens)
        states = torch.empty_like(hidden)
        exit_layers = torch.full_like(slots, num_layers)
        # The numbers of those that have not left.
        stayed = torch.arange(len(slots), device=slots.device)
        ends = [0, *weights.exits, num_layers]
        for segment, (first, last) in enumerate(pairwise(ends)):
            here = Tokens.of_step(cache, segment, slots[stayed], positions[stayed])
            held = cache.states[here.pending]
            cache.filled[segment, slots[stayed]] = positions[stayed] + 1
            for layer in range(first + 1, last + 1):
                both = torch.cat([hidden, held]) if len(held) else hidden
                hidden = run_layer(weights.stack, layer, both, here, cache, ops)
            threshold = self.thresholds.get(last, 1.0)
            if last == num_layers or threshold == 1.0:  # no probability is above 1
                continue
            state = weights.readout(last, hidden, ops)
            leaves = weights.exits[last].probability(state) > threshold
            gone = stayed[leaves]
            if not len(gone):
                continue
            states[gone], exit_layers[gone] = state[leaves], last
            cache.states[here.present[leaves]] = hidden[leaves]
            stayed, hidden = stayed[~leaves], hidden[~leaves]
            if not len(stayed):
                break
        states[stayed] = weights.readout(num_layers, hidden, ops)
        return Step(weights.logits(states, ops), exit_layers)

    def _embed(self, ids: Tensor) -> Tensor:
        return self.weights.stack.embedding(ids, ids, ids, self._ops)


def _groups(lengths: list[int]) -> list[slice]:
    """Neighbouring prompts of at most `PREFILL_TOKENS` in all, or one longer one."""
    groups: list[slice] = []
    room = 0
    for number, length in enumerate(lengths):
        if not groups or length > room:
            groups.append(slice(number, number))
            room = PREFILL_TOKENS
        groups[-1] = slice(groups[-1].start, number + 1)
        room -= length
    return groups
