"""The engine of a decoder on the CPU: prompts and steps are one call into C++, and the LM head."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from consistentee_ext.engines.native import EngineNumber
from consistentee_ext.generation.cache import SlotCache
from consistentee_ext.generation.engine import DecoderEngine, EagerDecoderEngine, Step
from consistentee_ext.generation.weights import DecoderWeights, ExitWeights
from consistentee_ext.ops import load_ops
from consistentee_ext.ops.onednn import has_native_product


def choose_engine(
    weights: DecoderWeights, thresholds: Mapping[int, float], backend: str
) -> DecoderEngine:
    """The fastest engine of a backend that takes the model."""
    if backend == "cpu" and NativeDecoderEngine.takes(weights):
        return NativeDecoderEngine(weights, thresholds)
    return EagerDecoderEngine(weights, thresholds, load_ops(backend))


class NativeDecoderEngine(EagerDecoderEngine):
    """Blocks and exits laid out once in C++: what they compute up to the LM head is one call."""

    def __init__(
        self,
        weights: DecoderWeights,
        thresholds: Mapping[int, float],
        number: EngineNumber | None = None,
    ) -> None:
        super().__init__(weights, thresholds, load_ops("cpu"))
        self._number = number or _number_of(weights)
        self._thresholds = torch.tensor([thresholds.get(layer, 1.0) for layer in weights.exits])

    @staticmethod
    def takes(weights: DecoderWeights) -> bool:
        """Whether C++ has every product."""
        linears = [linear for block in weights.stack.blocks for linear in block.linears]
        linears += [part for e in weights.exits.values() for part in (e.down, e.up) if part]
        return all(map(has_native_product, [*linears, weights.head]))

    @override
    def with_thresholds(self, thresholds: Mapping[int, float]) -> NativeDecoderEngine:
        return NativeDecoderEngine(self.weights, thresholds, self._number)

    @override
    def _read(self, cache: SlotCache, ids: Tensor, offsets: Tensor, slots: Tensor) -> Tensor:
        states = torch.ops.consistentee.engine_prefill.default(
            self._number.value, ids, offsets, slots, **self._cache_and_norm(cache)
        )
        return self.weights.logits(states, self._ops)

    @override
    def _step(self, cache: SlotCache, tokens: Tensor, slots: Tensor, positions: Tensor) -> Step:
        states, exit_layers = torch.ops.consistentee.engine_step.default(
            self._number.value,
            tokens,
            slots,
            positions,
            **self._cache_and_norm(cache),
            thresholds=self._thresholds,
        )
        return Step(self.weights.logits(states, self._ops), exit_layers)

    def _cache_and_norm(self, cache: SlotCache) -> dict[str, Any]:
        norm = self.weights.last_norm
        return {
            "keys": cache.keys,
            "values": cache.values,
            "states": cache.states,
            "filled": cache.filled,
            "norm_weight": norm.weight,
            "norm_eps": norm.eps,
        }


def _number_of(weights: DecoderWeights) -> EngineNumber:
    number = EngineNumber(weights.stack)
    add = torch.ops.consistentee.engine_add_token_exit.default
    for layer, exit_ in weights.exits.items():
        add(number.value, layer=layer, **_exit_arguments(exit_))
    return number


def _exit_arguments(exit_: ExitWeights) -> dict[str, Any]:
    *inner, (score_weight, score_bias) = exit_.policy
    dense_weight, dense_bias = inner[0] if inner else (None, None)
    return {
        "down": None if exit_.down is None else exit_.down.weight,
        "up": None if exit_.up is None else exit_.up.weight,
        "dense_weight": dense_weight,
        "dense_bias": dense_bias,
        "score_weight": score_weight,
        "score_bias": score_bias,
    }
