"""Tasks by name: rows from a local folder or the model hub, metric, settings, configuration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from datasets import ClassLabel, Dataset, DatasetDict, load_dataset

from consistentee.atomic_files import quiet_datasets
from consistentee.data.tables import SPLIT_NAMES, check_splits, load_splits, table_of
from consistentee_ext.names import REGRESSION

Fields = Mapping[str, Any]


@dataclass(frozen=True)
class Task:
    """One entry of ``tasks.yaml``.

    Attributes:
        name: its key.
        text: columns of text, one or two.
        metric: a name in `consistentee.measures.metrics`.
        hub: data set, its configuration and dev split on the hub; None: local files only.
        regression: the labels are numbers.
        settings: fields of `TrainingSettings`, in place of the defaults.
        config: fields of `ConsistentEEConfig`, in place of the defaults.
        paper: in place of these two, the ``settings`` and ``config`` of arXiv 2312.11882.
    """

    name: str
    text: Sequence[str]
    metric: str
    hub: Sequence[str] | None
    regression: bool = False
    settings: Fields = field(default_factory=dict)
    config: Fields = field(default_factory=dict)
    paper: Mapping[str, Fields] = field(default_factory=dict)

    @property
    def problem_type(self) -> str | None:
        """As in the model's configuration."""
        return REGRESSION if self.regression else None

    def training(self, paper: bool = False) -> tuple[Fields, Fields]:
        """Fields of `TrainingSettings` and of `ConsistentEEConfig`: ours, or the paper's."""
        settings, config = self.settings, self.config
        if paper:
            settings, config = self.paper["settings"], self.paper["config"]
        kind = {} if self.problem_type is None else {"problem_type": self.problem_type}
        return settings, {"metric": self.metric, **kind, **config}


@cache
def tasks() -> dict[str, Task]:
    """Every task by name."""
    text = files("consistentee.data").joinpath("tasks.yaml").read_text(encoding="utf-8")
    return {name: Task(name, **entry) for name, entry in yaml.safe_load(text).items()}


def find_task(name: str) -> Task:
    """The task with a name.

    Raises:
        ValueError: there is none.
    """
    if name not in tasks():
        raise ValueError(f"task: expected one of {', '.join(tasks())}, got {name!r}")
    return tasks()[name]


def load_task(task: Task, paths: Sequence[str | Path] = ()) -> DatasetDict:
    """Load train, dev and, if there is one, test of a task, as `load_splits` returns them.

    Args:
        task: from `find_task`.
        paths: a folder or files, as in `load_splits`; without them the model hub is asked.

    Raises:
        FileNotFoundError: as `load_splits`.
        ValueError: as `load_splits`; no paths for a task that is on no hub; or the hub cannot be
            reached.
    """
    if paths:
        return load_splits(paths, problem_type=task.problem_type)
    if task.hub is None:
        raise ValueError(f"data: expected a folder, as {task.name} is on no hub, got none")
    path, configuration, dev = task.hub
    try:
        with quiet_datasets():
            loaded = {
                split: load_dataset(path, configuration, split=name)
                for split, name in (("train", "train"), ("dev", dev))
            }
    except (OSError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"data: expected a folder, or a hub that can be reached, for {task.name}; got: {reason}"
        ) from error
    # Without test: GLUE does not publish the labels of its test splits.
    splits = DatasetDict({name: _named(table, task) for name, table in loaded.items()})
    check_splits(splits, {name: f"{path} {name}" for name in SPLIT_NAMES}, task.problem_type)
    return splits


def _named(table: Dataset, task: Task) -> Dataset:
    """The columns of `load_table`, with names of classes in place of their numbers."""
    label = table.features["label"]
    values = table["label"][:]
    labels = label.int2str(values) if isinstance(label, ClassLabel) else list(map(str, values))
    return table_of([table[name][:] for name in task.text], labels)
