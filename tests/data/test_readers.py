"""Files of every format, read as they stand, and broken ones named."""

from __future__ import annotations

import contextlib
import json
import logging
import tempfile
from pathlib import Path

import datasets
import pytest
from support.files import write, write_parquet

from consistentee.data.tables import load_table, load_texts

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
        ("T.Tsv", TSV),
        ("T.JSONL", "\n".join(map(json.dumps, RECORDS))),
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


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.xlsx", "", r"expected one of \.tsv, \.csv, \.json, \.jsonl, \.parquet, got '\.xlsx'"),
        ("t.tsv", "", "expected at least one row, got none"),
        ("t.tsv", "sentence\tlabel\n", "expected at least one row, got none"),
        ("t.tsv", "\n \n", "expected at least one row, got none"),
        ("t.json", "[]", "expected at least one row, got none"),
        ("t.jsonl", "", "expected at least one row, got none"),
        ("t.tsv", "sentence\tlabel\na\tb\tc\n", "Expected 2 fields in line 2, saw 3"),
        ("t.tsv", "sentence\tlabel\na\tb\na\tb\tc\n", "Expected 2 fields in line 3, saw 3"),
        ("t.tsv", "text\tid\tid\tlabel\na\tb\tc\td\n", "got: 2 columns of the name 'id'$"),
        ("t.csv", "text,label,,\na,b,c,d\n", "got: 2 columns of the name ''$"),
        ("t.csv", 'sentence,label\n"a,b\n', "EOF inside string starting at row 1"),
        (
            "t.jsonl",
            '{"sentence": "a"}\n{"sentence"}',
            "jsonl in UTF-8, got: line 2: Expecting ':'",
        ),
        *(
            ("t.json", content, "expected json in UTF-8, got: rows that are not objects")
            for content in ("[1]", '[{"a": 1}, 5]', "null", "5")
        ),
        ("t.json", '[{"a": 1}', "expected json in UTF-8, got: "),
        (
            "t.jsonl",
            '{"text": "\\ud83d\\ude00"}\n{"text": "\\ud83d"}',
            r"row 2: half a .*'\\ud83d'$",
        ),
        ("t.json", '[{"text": "a", "b": [{"\\udead": 1}]}]', "row 1: half a character"),
        (
            "t.json",
            '[{"text": "a", "label": %s}]' % 10**30,
            "expected json in UTF-8, got: Python int",
        ),
        ("t.parquet", "sentence\tlabel\n", "expected parquet in UTF-8, got: "),
    ],
)
def test_bad_files_are_named(tmp_path, name, content, message):
    path = write(tmp_path / name, content)
    with pytest.raises(ValueError, match=message) as caught:
        load_table(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_files_that_are_missing_or_in_another_encoding_or_empty(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.tsv: expected a file, found none"):
        load_table(tmp_path / "none.tsv")
    for suffix, text in {
        "tsv": "sentence\tlabel\ncrème\t1\n",
        "jsonl": '{"sentence": "e"}\n{"sentence": "è"}',
    }.items():
        path = tmp_path / f"latin.{suffix}"
        path.write_bytes(text.encode("latin-1"))
        with pytest.raises(
            ValueError,
            match=rf"latin\.{suffix}: expected {suffix} in UTF-8, got: line 2: byte 0xe8",
        ):
            load_table(path)
    path = write_parquet(tmp_path / "empty.parquet", {"text": [], "label": []})
    with pytest.raises(ValueError, match=r"empty\.parquet: expected at least one row, got none"):
        load_table(path)
