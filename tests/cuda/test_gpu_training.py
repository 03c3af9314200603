"""On a GPU: the first two phases of training in bfloat16, against the CPU in float32."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from support.gpu import DEVICE
from support.models import VOCABULARY, random_batch, tiny_bert_config
from torch import Tensor, nn

from consistentee.model.modeling import (
    ConsistentEEForSequenceClassification,
    ConsistentEEOutput,
)
from consistentee.model.policies import PolicyNetwork
from consistentee.training.estimators import exact
from consistentee.training.losses import Losses
from consistentee_ext.configuration import ConsistentEEConfig

pytestmark = [pytest.mark.gpu_check, pytest.mark.needs_device]
STEPS, ROWS = 20, 32
LOSSES = Losses(exact, alpha=0.06)
Batch = dict[str, Tensor]
Loss = Callable[[ConsistentEEOutput, Batch], Tensor]


def fresh_model() -> ConsistentEEForSequenceClassification:
    torch.manual_seed(0)
    bert = tiny_bert_config(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    config = ConsistentEEConfig(bert, policy_input="both", num_labels=2)
    return ConsistentEEForSequenceClassification(config)


def training_rows() -> Batch:
    """Rows whose label is whether the first token is of the vocabulary's second half."""
    batch = random_batch([12] * ROWS, seed=7)
    return batch | {"labels": (batch["input_ids"][:, 0] >= VOCABULARY // 2).long()}


def losses_of(
    module: nn.Module, batch: Batch, loss: Loss, device: torch.device, bf16: bool, steps: int
) -> list[float]:
    """The loss before each step."""
    module = module.to(device)
    batch = {name: rows.to(device) for name, rows in batch.items()}
    inputs = {name: rows for name, rows in batch.items() if name != "labels"}
    optimizer = torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], lr=3e-3)
    found = []
    for _ in range(steps):
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            output = module(**inputs)
        value = loss(output, batch)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        found.append(value.item())
    return found


def check_phase(make: Callable[[], nn.Module], batch: Batch, loss: Loss) -> None:
    """The loss falls; the first is the CPU's, as near as the CPU's own bfloat16 comes."""
    cpu = torch.device("cpu")
    found = losses_of(make(), batch, loss, DEVICE, bf16=True, steps=STEPS)
    (expected,) = losses_of(make(), batch, loss, cpu, bf16=False, steps=1)
    (rounded,) = losses_of(make(), batch, loss, cpu, bf16=True, steps=1)
    assert abs(found[0] - expected) <= 2 * abs(rounded - expected) + 5e-3
    assert found[-1] < 0.9 * found[0], found


def test_trunk() -> None:
    check_phase(fresh_model, training_rows(), LOSSES.trunk)


def test_policies() -> None:
    """On states and logits of a trunk that has learned its rows."""
    trunk, batch = fresh_model(), training_rows()
    losses_of(trunk, batch, LOSSES.trunk, torch.device("cpu"), bf16=False, steps=STEPS)
    inputs = {name: rows for name, rows in batch.items() if name != "labels"}
    with torch.no_grad():
        output = trunk(**inputs)
    recorded = {"states": output.states, "exit_logits": output.exit_logits}

    def policies() -> nn.Module:
        model = fresh_model()
        model.load_state_dict(trunk.state_dict())
        return PolicyNetwork(model)

    check_phase(policies, recorded | {"labels": batch["labels"]}, LOSSES.policies)
