"""Tasks by name: their settings, metrics and data."""

from __future__ import annotations

from pathlib import Path

import pytest
from datasets import ClassLabel, Dataset, Features, Value

from consistentee.data import tasks as tasks_module
from consistentee.data.tasks import find_task, load_task, tasks
from consistentee.training.settings import TrainingSettings
from consistentee_ext.configuration import ConsistentEEConfig
from consistentee_ext.names import METRICS

NAMES = {
    *("rte", "mrpc", "sst2", "qnli", "qqp", "mnli", "cola", "stsb"),
    *("mcid", "stackoverflow", "sick"),
}


def test_every_task_has_settings_that_training_takes():
    assert set(tasks()) == NAMES
    for task in tasks().values():
        assert task.metric in METRICS
        ours, config = task.training()
        TrainingSettings(**ours)
        ConsistentEEConfig(**{"num_labels": 1 if task.regression else 2, **config})
        paper, config = task.training(paper=True)
        settings = TrainingSettings(**paper)
        # Section 4 of the paper: phases of 5, 2 and 2 epochs at 1e-5, 3e-4 and 3e-5.
        assert (settings.epochs, settings.policy_epochs, settings.joint_epochs) == (5, 2, 2)
        rates = settings.learning_rate, settings.policy_learning_rate, settings.joint_learning_rate
        assert rates == (1e-5, 3e-4, 3e-5)
        assert (settings.estimator, settings.samples) == ("reinforce", 8)
        assert (config["pooling"], config["policy_input"]) == ("cls", "state")


def test_metrics_are_glue_s():
    metrics = {name: task.metric for name, task in tasks().items() if task.metric != "accuracy"}
    assert metrics == {"mrpc": "f1", "qqp": "f1", "cola": "matthews", "stsb": "spearman"}
    assert [name for name, task in tasks().items() if task.regression] == ["stsb"]


def write(folder: Path, header: str, rows: list[str]) -> None:
    for split in ("train", "dev"):
        (folder / f"{split}.tsv").write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")


def test_from_a_local_folder(tmp_path):
    write(tmp_path, "question\tsentence\tlabel", ["who ?\tshe .\t1", "what ?\tno .\t0"])
    splits = load_task(find_task("qnli"), [tmp_path])
    assert splits["train"][0] == {"sentence1": "who ?", "sentence2": "she .", "label": "1"}
    assert set(splits) == {"train", "dev"}


def test_from_the_hub(monkeypatch):
    """GLUE's tables as the hub gives them: numbered classes with names, and an index."""
    asked = []
    features = Features(
        {
            "premise": Value("string"),
            "hypothesis": Value("string"),
            "label": ClassLabel(names=["entailment", "neutral"]),
            "idx": Value("int32"),
        }
    )
    rows = {"premise": ["a", "b"], "hypothesis": ["c", "d"], "label": [1, 0], "idx": [0, 1]}

    def load(path, name, split):
        asked.append((path, name, split))
        return Dataset.from_dict(rows, features=features)

    monkeypatch.setattr(tasks_module, "load_dataset", load)
    splits = load_task(find_task("mnli"))
    glue = ("nyu-mll/glue", "mnli")
    assert asked == [(*glue, "train"), (*glue, "validation_matched")]
    assert splits["dev"].to_list() == [
        {"sentence1": "a", "sentence2": "c", "label": "neutral"},
        {"sentence1": "b", "sentence2": "d", "label": "entailment"},
    ]


def test_errors_name_the_task(monkeypatch):
    with pytest.raises(ValueError, match=r"^task: expected one of rte, .*, got 'imdb'$"):
        find_task("imdb")
    with pytest.raises(ValueError, match=r"^data: expected a folder, as mcid is on no hub"):
        load_task(find_task("mcid"))

    def refuse(*_args, **_options):
        raise ConnectionError("no\nnetwork")

    monkeypatch.setattr(tasks_module, "load_dataset", refuse)
    with pytest.raises(ValueError, match=r"^data: expected a folder, or a hub .*: no network$"):
        load_task(find_task("sst2"))
