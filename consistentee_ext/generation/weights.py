"""A decoder's weights as its engine reads them, and how they are read from Hugging Face modules.

Letters: H hidden size, L layers, V vocabulary, r rank of a translator, P policy size.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

from consistentee_ext.families import FAMILIES
from consistentee_ext.families.guard import check_modules, merge_hint
from consistentee_ext.families.reader import Reader
from consistentee_ext.generation.configuration import check_backbone
from consistentee_ext.generation.modeling import ConsistentEEForCausalLM
from consistentee_ext.layers import Stack
from consistentee_ext.ops import LayerOps
from consistentee_ext.ops.norm import norm
from consistentee_ext.weights import LinearWeights, NormWeights


@dataclass(frozen=True)
class ExitWeights:
    """An exit of a decoder, see `consistentee_ext.generation.exits.DecoderExit`.

    Attributes:
        down: A, ``[r, H]``; None without translator.
        up: B, ``[H, r]``; likewise.
        policy: weight and bias of the policy's products in float32: ``[P, H]``, ``[P]``,
            ``[1, P]``, ``[1]`` of an MLP, or ``[1, H]``, ``[1]``.
    """

    down: LinearWeights | None
    up: LinearWeights | None
    policy: tuple[tuple[Tensor, Tensor], ...]

    def translate(self, hidden: Tensor, ops: LayerOps) -> Tensor:
        """What the last norm reads, ``[R, H]``."""
        if self.down is None or self.up is None:
            return hidden
        return hidden + ops.linear(ops.linear(hidden, self.down), self.up)

    def probability(self, state: Tensor) -> Tensor:
        """The policy's exit probability, ``[R]`` float32, of states ``[R, H]``."""
        *inner, last = self.policy
        features = state.float()
        for weight, bias in inner:
            features = gelu(nn.functional.linear(features, weight, bias))
        return torch.sigmoid(nn.functional.linear(features, *last)).squeeze(-1)


@dataclass(frozen=True)
class DecoderWeights:
    """A decoder with its LM head and exits.

    Attributes:
        stack: embedding and blocks; these norm first.
        last_norm: N_f, before the LM head.
        head: ``[V, H]``.
        softcap: c of the logits ``c tanh(z / c)``; None for z.
        exits: by their layer, in rising order; none of the last layer, where all tokens leave.
    """

    stack: Stack
    last_norm: NormWeights
    head: LinearWeights
    softcap: float | None = None
    exits: Mapping[int, ExitWeights] = field(default_factory=dict)

    def readout(self, layer: int, hidden: Tensor, ops: LayerOps) -> Tensor:
        """What policy and LM head read of states behind a layer, ``[R, H]``."""
        if layer in self.exits:
            hidden = self.exits[layer].translate(hidden, ops)
        return norm(hidden, *self.last_norm)

    def logits(self, state: Tensor, ops: LayerOps) -> Tensor:
        """The LM head's, ``[R, V]`` float32, of states from `readout`."""
        logits = ops.linear(state, self.head).float()
        cap = self.softcap
        return logits if cap is None else cap * torch.tanh(logits / cap)


def find_decoder(model: object) -> Any:
    """The Hugging Face decoder with its LM head in a model.

    Raises:
        TypeError, ValueError: it is none that can be read.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a causal language model, got {type(model).__name__}")
    decoder: Any = model.backbone if isinstance(model, ConsistentEEForCausalLM) else model
    kind: Any = type(getattr(decoder, "config", None))
    causal: Any = MODEL_FOR_CAUSAL_LM_MAPPING.get(kind, ())
    if not isinstance(decoder, causal):
        raise ValueError(
            "model: expected a ConsistentEE decoder or a Hugging Face causal language model, got "
            f"{type(model).__name__}{merge_hint(type(model).__module__)}"
        )
    check_backbone(decoder.config)
    check_modules(model)
    return decoder


def read_decoder(model: Any, decoder: Any, reader: Reader) -> DecoderWeights:
    """The weights of a model, whose Hugging Face decoder is `decoder`."""
    exits = {}
    if isinstance(model, ConsistentEEForCausalLM):
        exits = {layer: _read_exit(model, layer, reader) for layer in model.config.exit_layers}
    stack = FAMILIES[decoder.config.model_type].read_stack(decoder.model, reader)
    return DecoderWeights(
        stack=stack,
        last_norm=reader.norm(decoder.model.norm),
        head=_read_head(decoder, stack.embedding.words, reader),
        softcap=getattr(decoder.config, "final_logit_softcapping", None),
        exits=exits,
    )


def _read_head(decoder: Any, words: Tensor, reader: Reader) -> LinearWeights:
    """The LM head, in the embedding's memory where both are one matrix."""
    head = decoder.lm_head
    is_tied = head.weight is decoder.get_input_embeddings().weight
    if is_tied and head.bias is None and torch.equal(words, head.weight.to(words)):
        return LinearWeights(words, None, few_rows=True)
    return reader.linear(head)  # Gemma's embedding is scaled


def _read_exit(model: ConsistentEEForCausalLM, layer: int, reader: Reader) -> ExitWeights:
    found = model.exit(layer)
    translator, policy = found.translator, found.policy
    products = [policy] if isinstance(policy, nn.Linear) else [policy[0], policy[-1]]  # type: ignore[index]
    return ExitWeights(
        None if translator is None else reader.product((translator.down, None)),
        None if translator is None else reader.product((translator.up, None)),
        tuple((reader.exact(one.weight), reader.exact(one.bias)) for one in products),
    )
