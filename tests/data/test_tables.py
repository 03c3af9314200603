"""Tables of texts and labels: columns found, splits that fit, labels in order."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.files import write

from consistentee.data.tables import load_splits, load_table, load_texts


@pytest.mark.parametrize(
    ("header", "text_columns", "expected"),
    [
        ("text sentence sentence1 sentence2", None, {"sentence1": ["2"], "sentence2": ["3"]}),
        ("text sentence sentence1 other", None, {"sentence1": ["1"]}),
        ("text x y z", None, {"sentence1": ["0"]}),
        ("text x y z", ["y"], {"sentence1": ["2"]}),
        ("text x y z", ["z", "x"], {"sentence1": ["3"], "sentence2": ["1"]}),
    ],
)
def test_text_columns_are_found(tmp_path, header, text_columns, expected):
    path = write(tmp_path / "t.tsv", header.replace(" ", "\t") + "\tlabel\n0\t1\t2\t3\tyes\n")
    table = load_table(path, text_columns)
    assert table.to_dict() == {**expected, "label": ["yes"]}


def test_texts_come_with_every_column_as_it_is(tmp_path):
    path = write(tmp_path / "t.tsv", "id\tsentence\ttopic\n01\ta\tx\n2\tb\t\n")
    rows, texts = load_texts(path)
    assert rows.to_dict() == {"id": ["01", "2"], "sentence": ["a", "b"], "topic": ["x", ""]}
    assert texts.to_dict() == {"sentence1": ["a", "b"]}
    with pytest.raises(ValueError, match=r"row 2: expected text in 'topic', got ''"):
        load_texts(path, ["sentence", "topic"])


def test_label_column_by_name(tmp_path):
    path = write(tmp_path / "t.tsv", "sentence\ttopic\na\tx\nb\t\n")
    with pytest.raises(ValueError, match=r"t\.tsv: expected a column 'label', got sentence, topic"):
        load_table(path)
    with pytest.raises(ValueError, match=r"row 2: expected an integer or a string in 'topic'"):
        load_table(path, label_column="topic")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "t.tsv",
            "words\tlabel\na\tb\n",
            r"expected the columns sentence1\+sentence2 or question1\+question2 or "
            r"premise\+hypothesis or question\+sentence or sentence or text, got words, label$",
        ),
        ("t.tsv", "sentence\tlabel\na\tb\n \tb\n", "row 2: expected text in 'sentence', got ' '"),
        ("t.tsv", "sentence\tlabel\na\n", "row 1: expected an integer or .* in 'label', got ''"),
        ("t.jsonl", '{"sentence": 5, "label": 1}', "expected text in 'sentence', got int64"),
        ("t.jsonl", '{"sentence": ["a"], "label": 1}', "expected text in 'sentence', got nested"),
        (
            "t.jsonl",
            '{"sentence": "a", "label": 1.5}',
            "integer or a string in 'label', got float64",
        ),
        ("t.jsonl", '{"sentence": "a", "label": true}', "integer or a string in 'label', got bool"),
        ("t.jsonl", '{"sentence": "a", "label": null}', "integer or a string in 'label', got null"),
        ("t.jsonl", '{"sentence": "a", "label": 1}\n{"sentence": "b"}', "row 2: .* got None"),
    ],
)
def test_rows_that_are_no_table_are_named(tmp_path, name, content, message):
    path = write(tmp_path / name, content)
    with pytest.raises(ValueError, match=message) as caught:
        load_table(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_text_columns_are_one_or_two(tmp_path):
    with pytest.raises(ValueError, match="text_columns: expected one or two names, got"):
        load_table(write(tmp_path / "t.tsv", "text\tlabel\na\tb\n"), ["a", "b", "c"])


def splits_folder(folder: Path, **files: str) -> Path:
    for stem, rows in files.items():
        write(folder / f"{stem}.tsv", "sentence\tlabel\n" + rows)
    return folder


@pytest.mark.parametrize("dev", ["dev", "validation", "valid"])
def test_splits_of_a_folder(tmp_path, dev):
    splits_folder(tmp_path, train="a\t0\nb\t1\n", test="d\t1\n", **{dev: "c\t0\n"})
    write(tmp_path / "README.tsv", "other\n")
    splits = load_splits([tmp_path])
    assert {name: table["sentence1"][:] for name, table in splits.items()} == {
        "train": ["a", "b"],
        "dev": ["c"],
        "test": ["d"],
    }


def test_splits_of_files(tmp_path):
    splits_folder(tmp_path, x="a\t0\nb\t1\n", y="c\t0\n")
    splits = load_splits([tmp_path / "x.tsv", tmp_path / "y.tsv"])
    assert list(splits) == ["train", "dev"]
    assert splits["dev"]["sentence1"][:] == ["c"]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"train": "a\t0\nb\t1\n"}, "expected a file named dev or validation or valid"),
        ({"dev": "a\t0\nb\t1\n"}, "expected a file named train with"),
        (
            {"train": "a\t0\nb\t1\n", "dev": "c\t0\n", "valid": "c\t0\n"},
            r"expected one file for dev, got dev\.tsv, valid\.tsv",
        ),
        (
            {"train": "a\t7\nb\t7\n", "dev": "c\t7\n"},
            r"train\.tsv: expected two labels or more, got only \['7'\]",
        ),
        (
            {"train": "a\t0\nb\t1\n", "dev": "c\t0\nd\t2\n"},
            r"dev\.tsv: expected the labels of train, got \['2'\] too",
        ),
        (
            {"train": "a\t0\nb\t1\n", "dev": "c\t0\n", "test": "d\tx\n"},
            r"test\.tsv: expected the labels of train, got \['x'\] too",
        ),
    ],
)
def test_splits_that_do_not_fit(tmp_path, files, message):
    with pytest.raises(ValueError, match=message):
        load_splits([splits_folder(tmp_path, **files)])


def test_splits_need_train_and_dev_of_one_shape(tmp_path):
    splits_folder(tmp_path, train="a\t0\nb\t1\n")
    pairs = write(tmp_path / "pairs.tsv", "sentence1\tsentence2\tlabel\na\tb\t0\n")
    with pytest.raises(ValueError, match=r"or the files train, dev and perhaps test, got 1 file$"):
        load_splits([tmp_path / "train.tsv"])
    with pytest.raises(ValueError, match="got 4 files"):
        load_splits([tmp_path / "train.tsv"] * 4)
    with pytest.raises(ValueError, match=r"pairs\.tsv: expected \['sentence1', 'label'\]"):
        load_splits([tmp_path / "train.tsv", pairs])
    with pytest.raises(FileNotFoundError, match="nowhere: expected a file or a folder"):
        load_splits([tmp_path / "nowhere"])


def test_labels_of_two_spellings_are_refused(tmp_path):
    """Also where train has one of them and dev the other; not numbers to predict."""
    splits_folder(tmp_path, train="a\tpos\nb\tneg\n", dev="c\tpos \n")
    message = r"^label: expected one spelling of each label, got .* alone: 'pos' and 'pos '$"
    with pytest.raises(ValueError, match=message):
        load_splits([tmp_path])
    splits_folder(tmp_path, train="a\t1\nb\t2.5\n", dev="c\t1.0\n")
    with pytest.raises(ValueError, match=r"alone: '1' and '1\.0'$"):
        load_splits([tmp_path])
    assert load_splits([tmp_path], problem_type="regression")["dev"]["label"][:] == ["1.0"]


def test_text_columns_in_any_order_and_twice(tmp_path):
    path = write(tmp_path / "t.tsv", "sentence1\tsentence2\na\tb\nc\td\n")
    for names in (["sentence2", "sentence1"], ["sentence1", "sentence1"], ["sentence2"]):
        rows, texts = load_texts(path, names)
        expected = {f"sentence{n}": rows[name][:] for n, name in enumerate(names, start=1)}
        assert texts.to_dict() == expected
