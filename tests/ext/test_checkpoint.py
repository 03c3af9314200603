"""Checkpoints on disk: the engine reads them by itself, or says what is wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.letters import tokenizer
from support.models import random_batch, tiny_classifier, tiny_model
from transformers import FNetConfig

from consistentee_ext import FastEarlyExitEncoder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny_model(classes=3, policy_input="both").save_pretrained(tmp_path)
    return tmp_path


def load(folder: Path) -> FastEarlyExitEncoder:
    return FastEarlyExitEncoder.from_pretrained(folder, tokenizer=object())


def test_round_trip(folder: Path) -> None:
    model = tiny_model(classes=3, policy_input="both")
    inputs = random_batch([3, 19, 7])
    expected, found = FastEarlyExitEncoder(model)(**inputs), load(folder)(**inputs)
    assert torch.equal(found.logits, expected.logits)
    assert torch.equal(found.exit_layers, expected.exit_layers)


def test_plain_bert_checkpoint(tmp_path: Path) -> None:
    model = tiny_classifier()
    model.save_pretrained(tmp_path)
    inputs = random_batch([3, 19, 7])
    expected = FastEarlyExitEncoder(model)(**inputs)
    assert torch.equal(load(tmp_path)(**inputs).logits, expected.logits)


def run_apart(script: str) -> subprocess.CompletedProcess[str]:
    """In a process that has nothing of the training."""
    command = [sys.executable, "-c", script]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_engine_needs_only_itself(folder: Path) -> None:
    script = (
        "import sys, torch; from consistentee_ext import FastEarlyExitEncoder; "
        f"encoder = FastEarlyExitEncoder.from_pretrained({str(folder)!r}, tokenizer=object()); "
        "print(encoder(torch.tensor([[1, 2, 3]])).logits.shape); "
        "assert 'consistentee' not in sys.modules"
    )
    run = run_apart(script)
    assert run.stdout.strip() == "torch.Size([1, 3])", run.stderr


def test_the_engine_loads_without_a_word(trained: Path) -> None:
    """With the tokenizer, as the README does it."""
    script = (
        "from transformers import AutoTokenizer; from consistentee_ext import FastEarlyExitEncoder;"
        f"tokenizer = AutoTokenizer.from_pretrained({str(trained)!r}); "
        f"encoder = FastEarlyExitEncoder.from_pretrained({str(trained)!r}); "
        "inputs = tokenizer(['a b', 'q'], padding=True, return_tensors='pt'); "
        "print(encoder(**inputs).logits.shape)"
    )
    run = run_apart(script)
    assert run.stdout.strip() == "torch.Size([2, 2])", run.stderr
    assert run.stderr == ""


def edit_weights(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        weights = load_file(folder / "model.safetensors")
        change(weights)
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

    return edit


def edit_config(**changes: object) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        path = folder / "config.json"
        config = json.loads(path.read_text()) | changes
        path.write_text(json.dumps({k: v for k, v in config.items() if v is not None}))

    return edit


def set_weight(name: str, shape: tuple[int, ...]) -> Callable[[dict], None]:
    return lambda weights: weights.update({name: torch.zeros(shape)})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            edit_weights(lambda w: w.pop("heads.1.policy.dense.weight")),
            "heads.1.policy.dense.weight",
        ),
        (
            edit_weights(set_weight("heads.0.classifier.weight", (3, 31))),
            "heads.0.classifier.weight",
        ),
        (
            edit_weights(set_weight("heads.9.classifier.weight", (3, 32))),
            "heads.9.classifier.weight",
        ),
        (edit_config(model_type="fnet"), "model_type consistentee, .*bert, .*, got 'fnet'"),
        (edit_config(model_type=None), "model_type consistentee, .*bert, .*, got None"),
        (edit_config(pooling=None), "config.json has no field 'pooling'"),
        (edit_config(threshold=7), r"threshold: expected a number in \(0, 1\], got 7"),
        (edit_config(backbone=FNetConfig().to_dict()), "backbone: expected .*bert.*'fnet'"),
    ],
)
def test_damaged_checkpoint(folder: Path, damage: Callable[[Path], None], message: str) -> None:
    damage(folder)
    with pytest.raises(ValueError, match=message) as raised:
        load(folder)
    assert "\n" not in str(raised.value)


def test_bert_without_its_classifier(tmp_path: Path) -> None:
    tiny_classifier().save_pretrained(tmp_path)
    edit_weights(lambda weights: weights.pop("classifier.weight"))(tmp_path)
    with pytest.raises(ValueError, match=r"missing: classifier\.weight"):
        load(tmp_path)


def test_pickled_weights_are_not_read(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    with pytest.raises(OSError, match=r"model\.safetensors"):
        load(folder)


def test_missing_folder(tmp_path: Path) -> None:
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    with pytest.raises(OSError, match="nowhere"):
        load(tmp_path / "nowhere")


@pytest.mark.parametrize("make", [tiny_model, tiny_classifier])
def test_the_hub_is_asked_as_transformers_does(make: Callable[..., Any], tmp_path: Path) -> None:
    """A cache as the hub's client leaves it: two revisions of one model, each in a subfolder."""
    inputs = random_batch([3, 19, 7])
    for revision, seed in (("main", 1), ("v2", 2)):
        cached = tmp_path / "models--owner--name"
        (cached / "refs").mkdir(parents=True, exist_ok=True)
        (cached / "refs" / revision).write_text(f"{seed:040}")
        folder = cached / "snapshots" / f"{seed:040}" / "final"
        make(seed=seed).save_pretrained(folder)
        tokenizer().save_pretrained(folder)
    options: dict[str, Any] = {"cache_dir": tmp_path, "local_files_only": True}
    for revision, seed in (("main", 1), ("v2", 2)):
        found = FastEarlyExitEncoder.from_pretrained(
            "owner/name", revision=revision, subfolder="final", token=False, **options
        )
        expected = FastEarlyExitEncoder(make(seed=seed))(**inputs)
        assert torch.equal(found(**inputs).logits, expected.logits)
        assert found.tokenizer.get_vocab() == tokenizer().get_vocab()
        assert found.name_or_path == "owner/name"
    with pytest.raises(OSError, match="cached files"):
        FastEarlyExitEncoder.from_pretrained("owner/name", **options)
