"""Autocast around a pass, as accelerate puts it there: a pass has a dtype of its own."""

from __future__ import annotations

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from support.models import random_batch, tiny_classifier, tiny_model
from support.quiet import quiet

from consistentee_ext import EarlyExitOutput, FastEarlyExitEncoder

BATCH = random_batch([5, 9, 2], seed=3)
LABELS = torch.tensor([0, 1, 2])


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_accelerate_gets_the_hugging_face_models_results(precision: str, backend: str) -> None:
    """Under bf16 it replaces `forward` by one with autocast, and makes outputs of dictionaries."""
    model = tiny_classifier()
    with torch.no_grad():
        expected = model(**BATCH, labels=LABELS)
    AcceleratorState._reset_state(reset_partial_state=True)
    try:
        with quiet():
            accelerator = Accelerator(mixed_precision=precision, cpu=True)
            prepared = accelerator.prepare(FastEarlyExitEncoder(model, backend=backend))
            found = prepared(**BATCH, labels=LABELS)
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
    torch.testing.assert_close(found.logits, expected.logits, atol=1e-5, rtol=0)
    torch.testing.assert_close(found.loss, expected.loss, atol=1e-5, rtol=0)
    assert found.exit_layers.tolist() == [4, 4, 4]


def test_it_changes_no_bit(backend: str) -> None:
    encoder = FastEarlyExitEncoder(tiny_model(), backend=backend)
    expected = encoder(**BATCH).logits
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(encoder(**BATCH).logits, expected)


def test_an_output_made_of_its_fields() -> None:
    output = FastEarlyExitEncoder(tiny_model())(**BATCH, labels=LABELS)
    again = EarlyExitOutput(dict(output))  # type: ignore[arg-type]  # as accelerate makes it
    assert list(again) == list(output) == ["loss", "logits", "exit_layers", "exit_scores"]
    assert again.exit_layers is output.exit_layers
    assert again.loss is output.loss
