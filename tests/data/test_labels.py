"""Labels: their order, and spellings that would make two classes of one."""

from __future__ import annotations

import pytest
from datasets import Dataset

from consistentee.data.labels import check_spelling, label_names, read_sets


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (["10", "9", "-1", "9"], ["-1", "9", "10"]),
        (["1", "01", "0"], ["0", "01", "1"]),
        (["10", "9", "b", "B"], ["10", "9", "B", "b"]),
    ],
)
def test_label_names(labels, expected):
    assert label_names(Dataset.from_dict({"label": labels})) == expected


@pytest.mark.parametrize(
    ("names", "listed"),
    [
        (["pos", "pos ", "neg"], "'pos' and 'pos '"),
        (["a b", "a  b", "a\u00a0b"], r"'a  b' and 'a b' and 'a\\xa0b'"),
        (["Yes", "yes", "no", "NO"], "'Yes' and 'yes'; 'NO' and 'no'"),
        (["1", "2", "1.0", "1e0"], "'1' and '1.0' and '1e0'"),
        (["01", "1"], "'01' and '1'"),
        (["-0", "0"], "'-0' and '0'"),
        (["straße", "STRASSE"], "'STRASSE' and 'straße'"),
    ],
)
def test_spellings_of_one_label_are_listed(names, listed):
    with pytest.raises(ValueError, match=rf"^label: expected one spelling .* alone: {listed}$"):
        check_spelling(names)


def test_other_labels_differ():
    check_spelling(["pos", "neg", "po s", "1", "2", "1.5", "nan", "inf", "-inf", "a1", "a1.0", "+"])


def test_sets_from_joined_names_and_lists():
    values = ["b|a", "", "  ", "a | c d", "x", ["a", "b"], []]
    expected = [["b", "a"], [], [], ["a", "c d"], ["x"], ["a", "b"], []]
    assert read_sets(values, "t.tsv: labels") == expected
    table = Dataset.from_dict({"label": [["10", "9"], [], ["-1"]]})
    assert label_names(table) == ["-1", "9", "10"]


@pytest.mark.parametrize("value", ["a||b", "a|", "a|b|a", None, 3, ["a", None], ["a|b"], [""], {}])
def test_what_is_no_set_is_named(value):
    with pytest.raises(ValueError, match=r"^t\.tsv: labels: row 2: expected different names"):
        read_sets(["a", value], "t.tsv: labels")
