"""Files that appear whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from datasets import Dataset
from support.full_disk import largest_file

from consistentee.atomic_files import check_table, whole_file, write_json, write_table


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("before")

    def write(text: str) -> None:
        with whole_file(path) as partial:
            partial.write_text(text)
            if text == "broken":
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write("broken")
    assert path.read_text() == "before"
    write("after")
    assert path.read_text() == "after"
    assert list(tmp_path.iterdir()) == [path]


def test_write_json(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"é": [1, 2]})
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert "é" in text
    assert json.loads(text) == {"é": [1, 2]}


def test_tsv_is_written_without_quoting(tmp_path: Path) -> None:
    table = Dataset.from_dict({"text": ['he said "no"', "it's"], "n": [1, 2]})
    write_table(tmp_path / "a.tsv", table)
    assert (tmp_path / "a.tsv").read_text() == 'text\tn\nhe said "no"\t1\nit\'s\t2\n'


def test_tsv_that_cannot_be_is_refused(tmp_path: Path) -> None:
    table = Dataset.from_dict({"text": ["a\tb"]})
    with pytest.raises(ValueError, match="expected no tab or line break"):
        write_table(tmp_path / "a.tsv", table)
    for check in (table, Dataset.from_dict({"n": [1, 2], "text": [None, "a\nb"]})):
        with pytest.raises(ValueError, match="expected no tab or line break"):
            check_table(tmp_path / "a.tsv", check)
    check_table(tmp_path / "a.tsv", Dataset.from_dict({"n": [[1, 2]], "text": ["a b"]}))
    check_table(tmp_path / "a.csv", table)
    write_table(tmp_path / "a.csv", table)
    assert [path.name for path in tmp_path.iterdir()] == ["a.csv"]


def test_suffix_in_capitals(tmp_path: Path) -> None:
    write_table(tmp_path / "A.CSV", Dataset.from_dict({"text": ["a"]}))
    assert (tmp_path / "A.CSV").read_text() == "text\na\n"


def test_the_file_that_a_disk_has_no_room_for_is_named(tmp_path: Path) -> None:
    """A limit on the size of files fails as a full disk does: the system's error has no name."""
    path = tmp_path / "a.json"
    with largest_file(1000), pytest.raises(OSError, match=r"File too large: .*a\.json"):
        write_json(path, {"a": "b" * 10_000})
    assert not list(tmp_path.iterdir())


def test_unknown_suffix(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected one of \.tsv, \.csv, .*got '\.xml'"):
        write_table(tmp_path / "a.xml", Dataset.from_dict({"text": ["a"]}))
