"""Blocks that normalise before attention and MLP, against torch.nn.TransformerEncoderLayer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from support.fake_device import Device
from support.models import random_batch, tiny_model
from torch import nn

from consistentee_ext import FastEarlyExitEncoder
from consistentee_ext.engines import Engine
from consistentee_ext.engines.device import DeviceEngine
from consistentee_ext.engines.eager import EagerEngine
from consistentee_ext.engines.graphs import PassGraphs
from consistentee_ext.engines.native import NativeEngine
from consistentee_ext.exits.exits import Exits
from consistentee_ext.layers import Stack
from consistentee_ext.ops import load_ops, onednn, reference

BATCH = random_batch([5, 1, 17, 9, 9, 30, 2, 41], seed=3)
LAYERS = 4


def eager(stack: Stack, exits: Exits) -> Engine:
    return EagerEngine(stack, exits, reference)


def op_by_op(stack: Stack, exits: Exits) -> Engine:
    return EagerEngine(stack, exits, load_ops("cpu"))


def device(stack: Stack, exits: Exits) -> Engine:
    return DeviceEngine(stack, exits, Device(), "lagged")


def graphs(stack: Stack, exits: Exits) -> Engine:
    ops = Device()
    return DeviceEngine(
        stack, exits, ops, "lagged", PassGraphs(stack, exits, ops, lambda: lambda run: run)
    )


ENGINES = [
    ("torch", eager),
    ("torch", device),
    ("torch", graphs),
    pytest.param("cpu", op_by_op, marks=pytest.mark.needs_native),
    pytest.param("cpu", NativeEngine, marks=pytest.mark.needs_native),
]


def encoder_of(
    model: Any, backend: str, make: Callable[[Stack, Exits], Engine], **options: Any
) -> FastEarlyExitEncoder:
    """The model's encoder, with the norms of its blocks moved to the front."""
    encoder = FastEarlyExitEncoder(model, backend=backend, criterion="confidence", **options)
    stack = encoder._engine.stack
    blocks = tuple(replace(block, norm_first=True) for block in stack.blocks)
    encoder._engine = make(replace(stack, blocks=blocks), encoder._engine.exits)
    return encoder


def torch_layer(layer: Any, activation: str) -> nn.TransformerEncoderLayer:
    """torch's own layer with the weights of BERT's."""
    attention = layer.attention.self
    size, inner = layer.intermediate.dense.weight.T.shape
    out = nn.TransformerEncoderLayer(
        size, attention.num_attention_heads, inner, 0.0, activation, 1e-12, True, norm_first=True
    )
    pairs = {
        out.self_attn.out_proj: layer.attention.output.dense,
        out.norm1: layer.attention.output.LayerNorm,
        out.linear1: layer.intermediate.dense,
        out.linear2: layer.output.dense,
        out.norm2: layer.output.LayerNorm,
    }
    for target, source in pairs.items():
        target.load_state_dict(source.state_dict())
    projections = (attention.query, attention.key, attention.value)
    with torch.no_grad():
        out.self_attn.in_proj_weight.copy_(torch.cat([p.weight for p in projections]))
        out.self_attn.in_proj_bias.copy_(torch.cat([p.bias for p in projections]))
    return out.eval()


def expected_logits(model: Any, activation: str = "gelu") -> torch.Tensor:
    """``[L, N, C]``, row by row, without padding."""
    layers = [torch_layer(layer, activation) for layer in model.backbone.encoder.layer]
    rows = []
    for row, length in enumerate(BATCH["attention_mask"].sum(dim=1).tolist()):
        ids, types = (
            BATCH[name][row : row + 1, :length] for name in ("input_ids", "token_type_ids")
        )
        hidden = model.backbone.embeddings(input_ids=ids, token_type_ids=types)
        logits = []
        for layer, head in zip(layers, model.heads, strict=True):
            hidden = layer(hidden)
            pooled = hidden[0, 0] if model.config.pooling == "cls" else hidden[0].mean(dim=0)
            logits.append(head.classifier(torch.tanh(head.pooler(pooled))))
        rows.append(torch.stack(logits))
    return torch.stack(rows, dim=1).detach()


def half_leave(logits: torch.Tensor) -> tuple[list[float], torch.Tensor]:
    """Thresholds by which half of the rows that are left leave at each layer, and where they do."""
    confidences = logits.softmax(dim=2).amax(dim=2)
    layers = torch.full(logits.shape[1:2], len(logits) - 1)
    thresholds = []
    for layer, confidence in enumerate(confidences[:-1]):
        stay = layers == len(logits) - 1
        ranked = confidence[stay].sort().values
        thresholds.append(ranked[len(ranked) // 2 - 1 : len(ranked) // 2 + 1].mean().item())
        layers[stay & (confidence > thresholds[-1])] = layer
    return thresholds, layers


def model_of(pooling: str, activation: str = "gelu") -> Any:
    model = tiny_model(pooling, seed=3, hidden_act=activation)
    for layer in model.backbone.encoder.layer:  # norms that do something
        for norm in (layer.attention.output.LayerNorm, layer.output.LayerNorm):
            nn.init.normal_(norm.weight, 1.0, 0.3)
            nn.init.normal_(norm.bias, 0.0, 0.3)
    return model


@pytest.mark.parametrize(("backend", "make"), ENGINES)
@pytest.mark.parametrize("pooling", ["cls", "mean"])
@pytest.mark.parametrize("activation", ["gelu", "relu"])
def test_every_layer(backend: str, make: Any, pooling: str, activation: str) -> None:
    """All rows leave at one layer, which computes first tokens alone where it is the last."""
    torch.manual_seed(0)
    model = model_of(pooling, activation)
    expected = expected_logits(model, activation)
    for layer in range(1, LAYERS + 1):
        encoder = encoder_of(model, backend, make, exit_layers=[layer], threshold=1e-9)
        found = encoder(**BATCH)
        assert found.exit_layers.tolist() == [layer] * len(expected[0])
        torch.testing.assert_close(found.logits, expected[layer - 1], atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize(("backend", "make"), ENGINES)
@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_exits(backend: str, make: Any, pooling: str) -> None:
    """Rows leave at several layers, so that the batch shrinks on its way."""
    torch.manual_seed(0)
    model = model_of(pooling)
    logits = expected_logits(model)
    thresholds, layers = half_leave(logits)
    assert sorted(layers.tolist()) == [0, 0, 0, 0, 1, 1, 2, 3]
    found = encoder_of(model, backend, make, threshold=thresholds)(**BATCH)
    assert torch.equal(found.exit_layers, layers + 1)
    expected = logits[layers, torch.arange(len(layers))]
    torch.testing.assert_close(found.logits, expected, atol=2e-5, rtol=2e-5)


@pytest.mark.needs_native
@pytest.mark.skipif(not onednn.is_available(torch.bfloat16), reason="no bfloat16 products here")
@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_bfloat16(pooling: str) -> None:
    """The native engine is as near to float32 as plain PyTorch is in bfloat16."""
    torch.manual_seed(0)
    model = model_of(pooling)
    expected = expected_logits(model)[-1]
    errors = [
        (encoder_of(model, backend, make, exit_layers=[], dtype=torch.bfloat16)(**BATCH).logits
         - expected).abs().max()
        for backend, make in (("cpu", NativeEngine), ("torch", eager))
    ]  # fmt: skip
    assert errors[0] <= 2 * errors[1]
    assert errors[1] > 0
