"""Options that commands share: which fields they set, and what is given of them."""

from __future__ import annotations

import inspect
from dataclasses import fields

import pytest

from consistentee.cli.options import (
    ConfigOptions,
    GenerationOptions,
    SettingsOptions,
    expand_options,
)
from consistentee.generation.settings import GenerationSettings
from consistentee.training.settings import TrainingSettings
from consistentee_ext.configuration import ConsistentEEConfig


def names(
    options: type[ConfigOptions] | type[SettingsOptions] | type[GenerationOptions],
) -> set[str]:
    return {field.name for field in fields(options)}


def test_options_are_fields_of_what_they_set() -> None:
    assert names(SettingsOptions) <= {field.name for field in fields(TrainingSettings)}
    assert names(ConfigOptions) <= set(inspect.signature(ConsistentEEConfig).parameters)
    of_settings = {field.name for field in fields(GenerationSettings)}
    assert names(GenerationOptions) - of_settings == {"prompts", "readout", "exit_layer"}


def test_what_is_not_given_is_left_out() -> None:
    assert ConfigOptions(alpha=[]).given() == {}
    assert SettingsOptions(epochs=0, folds=2).given() == {"epochs": 0, "folds": 2}


def test_one_alpha_is_a_number_and_a_range_has_a_middle() -> None:
    assert ConfigOptions(alpha=[0.1]).given() == {"alpha": 0.1}
    assert ConfigOptions(alpha=[0.1, 0.2]).given() == {"alpha": [0.1, 0.2]}
    given = ConfigOptions(alpha_range=(0.01, 0.16)).given()
    assert given == {"alpha": pytest.approx(0.04), "alpha_range": [0.01, 0.16]}
    assert ConfigOptions(alpha=[0.1], alpha_range=(0.01, 0.16)).given()["alpha"] == 0.1


def test_a_dataclass_becomes_its_options() -> None:
    called = []

    @expand_options
    def command(*, before: int, config: ConfigOptions, after: int = 3) -> None:
        called.append((before, config, after))

    parameters = inspect.signature(command).parameters
    assert list(parameters) == [
        *("before", "pooling", "policy_input", "alpha", "alpha_range", "after")
    ]
    assert parameters["alpha"].default is None
    command(before=1, pooling="cls", policy_input=None, alpha=[0.1], alpha_range=None)
    assert called == [(1, ConfigOptions(pooling="cls", alpha=[0.1]), 3)]
