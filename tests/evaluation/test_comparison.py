"""Exits compared: what is trained, what is measured, what is averaged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from datasets import Dataset, DatasetDict
from support.models import save_backbone
from transformers import AutoTokenizer

from consistentee.evaluation import comparison as comparison_module
from consistentee.evaluation.comparison import average, compare
from consistentee.evaluation.evaluate import load_model
from consistentee.training.settings import TrainingSettings
from consistentee_ext.criteria import PLAIN_CRITERIA

WORDS = [*"abcdefghij"]
SETTINGS = TrainingSettings(
    epochs=1, policy_epochs=2, joint_epochs=1, batch_size=16, held_out=0.25, bf16=False
)


@pytest.fixture(scope="module")
def backbone(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("backbone")
    save_backbone(folder, ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS])
    return folder


def table(rows: int, seed: int) -> Dataset:
    """Words whose class is whether the first is among the first five."""
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.randint(0, 10, (rows, 4), generator=generator).tolist()
    return Dataset.from_dict(
        {
            "sentence1": [" ".join(WORDS[n] for n in row) for row in numbers],
            "label": [str(int(row[0] < 5)) for row in numbers],
        }
    )


@pytest.fixture(scope="module")
def splits() -> DatasetDict:
    return DatasetDict({"train": table(64, 1), "dev": table(30, 2), "test": table(40, 3)})


@pytest.fixture(scope="module")
def run(backbone, splits, tmp_path_factory) -> tuple[dict, Path]:
    output = tmp_path_factory.mktemp("compare")
    return compare(backbone, splits, output, SETTINGS, [5, 6], 16, metric="accuracy"), output


def right(checkpoint: Path, rows: Dataset) -> torch.Tensor:
    """Row by row through the Hugging Face model: where each layer is right."""
    model, tokenizer = load_model(checkpoint), AutoTokenizer.from_pretrained(checkpoint)
    found = []
    for row in rows:
        with torch.no_grad():
            logits = model(**tokenizer(row["sentence1"], return_tensors="pt")).exit_logits[0]
        found.append((logits.argmax(-1) == int(row["label"])).tolist())
    return torch.tensor(found).double()


def test_every_method_is_measured_on_the_test_rows(run, splits):
    result, output = run
    assert result["rows"] == 40
    assert result["seeds"] == [5, 6]
    assert list(result["methods"]) == [
        *("ConsistentEE", *PLAIN_CRITERIA, "COSEE", "COSEE, by confidence", "truncation"),
        *("ConsistentEE, by confidence", "oracle"),
    ]
    for at, seed in enumerate((5, 6)):
        folder = output / f"seed-{seed}"
        ours = right(folder / "consistentee", splits["test"]).mean(dim=0)
        trunk = right(folder / "trunk", splits["test"]).mean(dim=0)
        cosee = right(folder / "cosee", splits["test"]).mean(dim=0)
        for name, layers in (("ConsistentEE", ours), ("confidence", trunk), ("COSEE", cosee)):
            method = result["methods"][name]
            assert method["full_depth"]["values"][at] == pytest.approx(layers[-1].item())
            curve = result["curves"][at][name]
            assert curve[0][0] == 1.0
            assert curve[1][0] == pytest.approx(layers[0].item())
        # 3 layers at ratio 1.5 are two layers: a model of its own, trained on its last.
        short = right(folder / "truncation-2", splits["test"]).mean(dim=0)
        assert short.shape == (2,)
        values = result["methods"]["truncation"]["accuracy"][0]["values"]
        assert values[at] == pytest.approx(short[-1].item())
    point = result["operating_point"]["full_depth_accuracy"]["mean"]
    assert point == pytest.approx(result["methods"]["ConsistentEE"]["full_depth"]["mean"])


def test_methods_differ_in_their_exits_alone(run):
    """All start from one trunk, trained on every row for as many epochs as phases 1 and 3 have."""
    _, output = run
    log = json.loads((output / "seed-5" / "trunk" / "training_log.json").read_text())
    assert log["run"]["settings"]["epochs"] == SETTINGS.epochs + SETTINGS.joint_epochs
    assert len(log["phases"]["trunk"]["losses"]) == 2


def test_what_was_measured_is_read_again(run, backbone, splits, monkeypatch, tmp_path):
    result, output = run
    for seed in (5, 6):
        file = f"seed-{seed}.json"
        (tmp_path / file).write_text((output / file).read_text())
    monkeypatch.setattr(comparison_module, "train", None)
    again = compare(backbone, splits, tmp_path, SETTINGS, [5, 6], 16, metric="accuracy")
    assert again == result
    assert json.loads((tmp_path / "comparison.json").read_text()) == result
    with pytest.raises(ValueError, match=r"^output: .*seed-5.json, which has another config$"):
        compare(backbone, splits, tmp_path, SETTINGS, [5], 16, metric="accuracy", alpha=0.5)


def test_average_is_over_tasks_and_its_spread_over_seeds():
    def task(*values: float) -> dict:
        return {"methods": {"x": {"accuracy": [{"values": list(values)}] * 4}}}

    (figure, *_) = average([task(0.5, 0.7), task(0.9, 0.9)])["x"]
    assert figure["values"] == pytest.approx([0.7, 0.8])
    assert figure["mean"] == pytest.approx(0.75)
    assert figure["sd"] == pytest.approx(0.1 / 2**0.5)


def test_bad_input(backbone, splits, tmp_path):
    options = {"metric": "spearman", "problem_type": "regression"}
    with pytest.raises(ValueError, match=r"^task: expected classes .*, got a regression$"):
        compare(backbone, splits, tmp_path, SETTINGS, [1], 16, **options)
    for seeds in ([], [1, 1]):
        with pytest.raises(ValueError, match=r"^seeds: expected one or more, all different"):
            compare(backbone, splits, tmp_path, SETTINGS, seeds, 16)
    assert not any(tmp_path.iterdir())
