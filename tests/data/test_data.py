import contextlib
import json
import logging
import socket
import tempfile
from pathlib import Path

import datasets
import pyarrow
import pyarrow.parquet
import pytest
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from consistentee.data.encode import encode
from consistentee.data.tables import label_names, load_splits, load_table, load_texts, numbers

VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "b", "c", "d", "e"]


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    ids = {word: index for index, word in enumerate(VOCABULARY)}
    backend = Tokenizer(models.WordLevel(ids, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="[PAD]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_: pytest.fail("asked for the network"))


def write_parquet(path: Path, columns: dict[str, list]) -> Path:
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    return path


# Values that a reader which guesses types would change: NA, None, 01, a lone quote, a date.
TEXTS = ['say "no', "None", "2020-01-01", "crème, brûlée"]
LABELS = ["NA", "01", "1", "null"]
TSV = "label\tsentence\tid\n" + "".join(
    f"{label}\t{text}\t7\n" for text, label in zip(TEXTS, LABELS, strict=True)
)
CSV = 'label,sentence,id\nNA,"say ""no",7\n01,None,7\n1,2020-01-01,7\nnull,"crème, brûlée",7\n'
RECORDS = [
    {"sentence": text, "label": label, "id": 7} for text, label in zip(TEXTS, LABELS, strict=True)
]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("t.tsv", TSV),
        ("t.tsv", "\ufeff" + TSV.replace("\n", "\r\n") + "\n"),
        ("t.csv", CSV),
        ("t.json", json.dumps(RECORDS, indent=1)),
        ("t.json", "\n".join(map(json.dumps, RECORDS))),
        ("t.jsonl", "\n".join(map(json.dumps, RECORDS)) + "\n\n"),
    ],
)
def test_every_format_reads_values_as_they_stand(tmp_path, name, content):
    table = load_table(write(tmp_path / name, content))
    assert table.to_dict() == {"sentence1": TEXTS, "label": LABELS}


def test_parquet_integers_become_strings(tmp_path):
    path = write_parquet(tmp_path / "t.parquet", {"text": TEXTS, "label": [3, 10, -1, 3]})
    assert load_table(path).to_dict() == {"sentence1": TEXTS, "label": ["3", "10", "-1", "3"]}


def test_long_texts_are_read(tmp_path):
    table = load_table(write(tmp_path / "t.csv", f"sentence,label\n{'a' * 200_000},b\n"))
    assert table.to_dict() == {"sentence1": ["a" * 200_000], "label": ["b"]}


def test_a_path_is_no_pattern(tmp_path):
    write(tmp_path / "1.tsv", "text\tlabel\none\tx\n")
    folder = tmp_path / ".hidden"
    folder.mkdir()
    for path in (tmp_path / "[1].tsv", tmp_path / "*.tsv", folder / "__t.tsv"):
        write(path, f"text\tlabel\n{path.name}\tx\n")
        assert load_table(path)["sentence1"][:] == [path.name]


@pytest.mark.parametrize("types_change_at", [1, 22])
def test_json_labels_of_two_types_are_not_merged(tmp_path, types_change_at):
    # 22 such rows are 11 MB, more than a library reads at once.
    records = ['{"text": "%s", "label": 1}' % ("a" * 500_000)] * types_change_at
    path = write(tmp_path / "t.jsonl", "\n".join([*records, '{"text": "a", "label": "01"}']))
    with pytest.raises(ValueError, match=r"or a string in 'label', got nested or mixed values$"):
        load_table(path)


@pytest.mark.parametrize(("name", "content"), [("t.tsv", TSV), ("t.parquet", "broken" * 9)])
def test_nothing_is_left_behind(tmp_path, monkeypatch, capfd, caplog, name, content):
    cache = str(datasets.config.HF_CACHE_HOME)
    for key, value in list(vars(datasets.config).items()):
        if isinstance(value, (str, Path)) and str(value).startswith(cache):
            moved = str(value).replace(cache, str(tmp_path / "cache"))
            monkeypatch.setattr(datasets.config, key, type(value)(moved))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(logging.getLogger("datasets"), "propagate", True)
    caplog.set_level(logging.INFO, "datasets")
    datasets.enable_progress_bars()
    with contextlib.suppress(ValueError):
        load_table(write(tmp_path / name, content))
    assert [path.name for path in tmp_path.rglob("*")] == [name]
    assert capfd.readouterr() == ("", "")
    assert caplog.messages == []
    assert not datasets.are_progress_bars_disabled()
    assert datasets.logging.get_verbosity() == logging.INFO


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


def test_json_strings_stay_strings(tmp_path):
    """Dates among them, and keys that not every row has."""
    lines = [
        '{"text": "2020-01-01", "at": "2020-01-02T03:04:05Z"}',
        '{"text": "a\u2028b", "id": 7}',
    ]
    rows, texts = load_texts(write(tmp_path / "t.jsonl", "\n".join(lines)))
    assert rows.to_dict() == {
        "text": ["2020-01-01", "a\u2028b"],
        "at": ["2020-01-02T03:04:05Z", None],
        "id": [None, 7],
    }
    assert texts.to_dict() == {"sentence1": ["2020-01-01", "a\u2028b"]}


def test_label_column_by_name(tmp_path):
    path = write(tmp_path / "t.tsv", "sentence\ttopic\na\tx\nb\t\n")
    with pytest.raises(ValueError, match=r"t\.tsv: expected a column 'label', got sentence, topic"):
        load_table(path)
    with pytest.raises(ValueError, match=r"row 2: expected an integer or a string in 'topic'"):
        load_table(path, label_column="topic")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.xlsx", "", r"expected one of \.tsv, \.csv, \.json, \.jsonl, \.parquet, got '\.xlsx'"),
        ("t.tsv", "", "expected at least one row, got none"),
        ("t.tsv", "sentence\tlabel\n", "expected at least one row, got none"),
        ("t.tsv", "\n \n", "expected at least one row, got none"),
        ("t.json", "[]", "expected at least one row, got none"),
        ("t.jsonl", "", "expected at least one row, got none"),
        (
            "t.tsv",
            "words\tlabel\na\tb\n",
            r"expected the columns sentence1\+sentence2 or question1\+question2 or "
            r"premise\+hypothesis or question\+sentence or sentence or text, got words, label$",
        ),
        ("t.tsv", "sentence\tlabel\na\tb\n \tb\n", "row 2: expected text in 'sentence', got ' '"),
        ("t.tsv", "sentence\tlabel\na\tb\tc\n", "Expected 2 fields in line 2, saw 3"),
        ("t.tsv", "sentence\tlabel\na\tb\na\tb\tc\n", "Expected 2 fields in line 3, saw 3"),
        ("t.tsv", "sentence\tlabel\na\n", "row 1: expected an integer or .* in 'label', got ''"),
        ("t.tsv", "sentence\tsentence\tlabel\na\tb\tc\n", "Duplicate names are not allowed"),
        ("t.csv", 'sentence,label\n"a,b\n', "EOF inside string starting at row 1"),
        (
            "t.jsonl",
            '{"sentence": "a"}\n{"sentence"}',
            "jsonl in UTF-8, got: line 2: Expecting ':'",
        ),
        *(
            ("t.json", content, "expected json in UTF-8, got: rows that are no objects")
            for content in ("[1]", '[{"a": 1}, 5]', "null", "5")
        ),
        ("t.json", '[{"a": 1}', "expected json in UTF-8, got: "),
        (
            "t.json",
            '[{"text": "a", "label": %s}]' % 10**30,
            "expected json in UTF-8, got: Python int",
        ),
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
        ("t.parquet", "sentence\tlabel\n", "expected parquet in UTF-8, got: "),
    ],
)
def test_bad_files_are_named(tmp_path, name, content, message):
    path = write(tmp_path / name, content)
    with pytest.raises(ValueError, match=message) as caught:
        load_table(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_other_bad_input(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.tsv: expected a file, found none"):
        load_table(tmp_path / "none.tsv")
    for suffix, text in {
        "tsv": "sentence\tlabel\ncrème\t1\n",
        "jsonl": '{"sentence": "è"}',
    }.items():
        path = tmp_path / f"latin.{suffix}"
        path.write_bytes(text.encode("latin-1"))
        with pytest.raises(ValueError, match=rf"latin\.{suffix}: expected {suffix} in UTF-8, got"):
            load_table(path)
    path = write_parquet(tmp_path / "empty.parquet", {"text": [], "label": []})
    with pytest.raises(ValueError, match=r"empty\.parquet: expected at least one row, got none"):
        load_table(path)
    with pytest.raises(ValueError, match="text_columns: expected one or two names, got"):
        load_table(write(tmp_path / "t.tsv", TSV), ["a", "b", "c"])


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
            r"train\.tsv: expected two labels or more, got '7' alone",
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


def test_encode_single_sentences(tokenizer):
    table = Dataset.from_dict({"sentence1": ["a b c d", "e"], "label": ["no", "yes"]})
    assert encode(table, tokenizer, max_length=5, labels=["yes", "no"]).to_dict() == {
        "input_ids": [[2, 4, 5, 6, 3], [2, 8, 3]],
        "token_type_ids": [[0] * 5, [0] * 3],
        "attention_mask": [[1] * 5, [1] * 3],
        "length": [5, 3],
        "labels": [1, 0],
    }


def test_encode_pairs_cuts_the_longer_one(tokenizer):
    table = Dataset.from_dict({"sentence1": ["a b c d"], "sentence2": ["e"], "label": ["x"]})
    assert encode(table, tokenizer, max_length=6).to_dict() == {
        "input_ids": [[2, 4, 5, 3, 8, 3]],
        "token_type_ids": [[0, 0, 0, 0, 1, 1]],
        "attention_mask": [[1] * 6],
        "length": [6],
    }


def test_encode_keeps_the_order_over_batches(tokenizer):
    words = [VOCABULARY[4 + row % 5] for row in range(2_345)]
    encoded = encode(Dataset.from_dict({"sentence1": words}), tokenizer, max_length=8)
    assert encoded["input_ids"][:] == [[2, 4 + row % 5, 3] for row in range(2_345)]


def test_encode_refuses(tokenizer):
    table = Dataset.from_dict({"sentence1": ["a"], "label": ["x"]})
    with pytest.raises(ValueError, match=r"max_length: expected above 2, .* got 2"):
        encode(table, tokenizer, max_length=2)
    with pytest.raises(ValueError, match=r"labels: expected every label .* got none for \['x'\]"):
        encode(table, tokenizer, max_length=8, labels=["y"])


def test_labels_of_a_regression_are_numbers(tmp_path, tokenizer):
    path = write(
        tmp_path / "train.jsonl", '{"text": "a b", "label": 2.5}\n{"text": "c", "label": 4}\n'
    )
    table = load_table(path, regression=True)
    assert numbers(table) == [2.5, 4.0]
    tsv = write(tmp_path / "dev.tsv", "text\tlabel\na\t1\nb\t0.25\n")
    splits = load_splits([path, tsv], regression=True)  # a number unseen in training is no mistake
    data = encode(splits["dev"], tokenizer, 16, regression=True)
    assert data["labels"] == [1.0, 0.25]
    with pytest.raises(ValueError, match=r"expected an integer or a string in 'label', got float"):
        load_table(path)
    for word in ("much", "nan", "inf"):
        bad = write(tmp_path / "bad.tsv", f"text\tlabel\na\t1\nb\t{word}\n")
        message = rf"^label: row 2: expected a finite number, got '{word}'$"
        with pytest.raises(ValueError, match=message):
            numbers(load_table(bad, regression=True))
