"""The configuration of a checkpoint: which fields fit together."""

from __future__ import annotations

import pytest

from consistentee_ext.configuration import check_metric


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("spearman", 2, "single_label_classification"),
            r"^metric: expected one of .* in single_label_classification, got 'spearman'$",
        ),
        (
            ("accuracy", 1, "regression"),
            r"^metric: expected one of \('spearman',\) in regression, got",
        ),
        (
            ("f1", 3, "multi_label_classification"),
            r"^metric: .* \('accuracy', 'f1_micro', 'f1_macro'\) in",
        ),
        (
            ("f1", 3, "single_label_classification"),
            "^metric: expected two classes for 'f1', got 3$",
        ),
    ],
)
def test_a_metric_that_does_not_fit_is_refused(
    arguments: tuple[str, int, str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        check_metric(*arguments)
