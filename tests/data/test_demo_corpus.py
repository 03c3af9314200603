"""The demo's corpus, read from the sources of installed packages."""

from __future__ import annotations

import random
import textwrap

import pytest

from consistentee.data import demo_corpus
from consistentee.data.demo_corpus import (
    LABELS,
    build_corpus,
    collect,
    docstrings,
    first_paragraph,
    normal_form,
    source_folder,
    split_rows,
)

SOURCE = textwrap.dedent(
    '''
    r"""Module text."""
    raise SystemExit("never executed")

    class Shape:
        """Class text.

        Second paragraph.
        """
        if True:
            def area(self):
                """Method text."""
                async def inner():
                    "Inner text."

    try:
        pass
    except ImportError:
        def fallback():
            """Fallback text."""

    label = """No docstring."""
    add_newdoc("core", "ndarray", ("T", """
        Compiled text.

        Another paragraph.
        """))
    torch._C._add_docstr(thing, r"""thing(x) -> y""" + notes)
    print("A long call that documents nothing at all.")
    '''
)


def test_docstrings_are_parsed_never_executed():
    assert sorted(docstrings(SOURCE.encode())) == [
        "Class text.\n\nSecond paragraph.",
        "Compiled text.\n\nAnother paragraph.",
        "Fallback text.",
        "Inner text.",
        "Method text.",
        "Module text.",
        "thing(x) -> y",
    ]


@pytest.mark.parametrize("source", [b"def broken(:", b"print 'python 2'", b"\x00", b"\xff = 1"])
def test_a_file_that_does_not_parse_has_no_docstrings(source):
    assert list(docstrings(source)) == []


@pytest.mark.parametrize(
    ("docstring", "expected"),
    [
        (
            "  Return the   sum of\n    all elements.\n\nMore.",
            "Return the sum of all elements.",
        ),
        (
            "Return ``x`` of :py:attr:`~a.b`, a [`Model`](link) or *very* rarely [`None`].",
            "Return x of ~a.b, a Model or very rarely None.",
        ),
        (
            "add(a, b, /) -> Tensor\n\nAdd two tensors of one shape.\n\nThird paragraph, not read.",
            "Add two tensors of one shape.",
        ),
        ("word " * 70, " ".join(["word"] * 64)),
        ("Only four words here.", None),
        (">>> print the sum of them", None),
        ("- a list of some things here", None),
        ("size (`int`, *optional*): the size of the window", None),
        ("Args: the size of the window in use", None),
        ("The table has these columns | a | b", None),
        ("The result is equal to x = y here", None),
        ("It is used in the following way:", None),
        ("See https://example.org for all of the details", None),
        ("a1 b2 c3 words in between d4", None),
        ("One.\n\nTwo.\n\nThe third paragraph is prose at last.", None),
    ],
)
def test_first_paragraph(docstring, expected):
    assert first_paragraph(docstring) == expected


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("The bare Bert model.", "the bare RoFormer  model", True),
        ("Evaluate a 2-D series at x_1.", "evaluate a 3-D series at Y.", True),
        ("Return the larger element.", "Return the smaller element.", False),
        ("Return the sum.", "Set the sum.", False),
    ],
)
def test_normal_form(one, other, same):
    assert (normal_form(one) == normal_form(other)) is same


def package(folder, files):
    for name, texts in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        functions = [f'def f{i}():\n    """{text}"""\n' for i, text in enumerate(texts)]
        path.write_text("".join(functions), encoding="utf-8")
    return folder


def test_collect_leaves_out_tests_library_names_and_repetitions(tmp_path):
    folder = package(
        tmp_path,
        {
            "a.py": [
                "Return the length of the list.",
                "Return the length of the Ring.",
                "Return the length of the Chain.",
            ],
            "sub/b.py": [
                "Turn a NumPy array into a list.",
                "Read the lines of a TorchScript file.",
                "Show what np. arrays look like.",
                "Close the file before the end.",
            ],
            "tests/c.py": ["Check that the file is closed."],
            "sub/_vendor/d.py": ["Taken over from some other project."],
            "e.txt": ["Not a file of source code."],
        },
    )
    texts = collect(folder, limit=100, seed=0)
    assert sorted(texts) == [
        "close the file before the end",
        "return the length of the _",
        "return the length of the list",
    ]


def test_collect_stops_at_the_limit(tmp_path):
    words = ["sum", "mean", "root", "rank", "norm", "trace"]
    files = {f"{word}.py": [f"Return the {word} of the matrix."] for word in words}
    assert len(collect(package(tmp_path, files), limit=4, seed=0)) == 4


def form_and_text(prefix, count):
    return {f"{prefix} form {i}": f"{prefix} text {i}" for i in range(count)}


def test_split_rows_are_balanced_disjoint_and_without_shared_forms():
    texts = {"x": form_and_text("x", 30), "y": form_and_text("y", 50)}
    for own in texts.values():
        own.update({f"shared {i}": f"shared text {i}" for i in range(10)})
    splits = split_rows(texts, rows_per_class=100, seed=0)
    sizes = {
        name: [sum(row[1] == label for row in rows) for label in texts]
        for name, rows in splits.items()
    }
    assert sizes == {"train": [21, 21], "dev": [3, 3], "test": [6, 6]}
    rows = [row for split in splits.values() for row in split]
    assert len(set(rows)) == 60
    assert all(text.startswith(label) for text, label in rows)
    assert splits == split_rows(texts, rows_per_class=100, seed=0)
    assert splits != split_rows(texts, rows_per_class=100, seed=1)


def test_source_folders_are_of_the_labels():
    assert (source_folder("python") / "ast.py").is_file()
    assert (source_folder("numpy") / "linalg" / "__init__.py").is_file()
    with pytest.raises(ModuleNotFoundError, match="not installed"):
        source_folder("consistentee_nowhere")


def test_build_corpus_writes_the_same_files_again(tmp_path, monkeypatch):
    words = ["sum", "mean", "root", "rank", "norm", "trace", "median", "mode", "range", "length"]
    verbs = {
        "numpy": "Compute",
        "python": "Print",
        "torch": "Backpropagate",
        "transformers": "Load",
    }
    for label in LABELS:
        files = {f"{word}.py": [f"{verbs[label]} the {word} of the thing."] for word in words}
        package(tmp_path / label, files)
    monkeypatch.setattr(demo_corpus, "source_folder", lambda label: tmp_path / label)

    counts = build_corpus(tmp_path / "one" / "corpus", rows_per_class=10)
    assert counts == {"train": 28, "dev": 4, "test": 8}
    one = {path.name: path.read_bytes() for path in (tmp_path / "one" / "corpus").iterdir()}
    assert sorted(one) == ["dev.tsv", "test.tsv", "train.tsv"]
    lines = one["dev.tsv"].decode().splitlines()
    assert lines[0] == "sentence\tlabel"
    assert sorted(line.split("\t")[1] for line in lines[1:]) == list(LABELS)
    for line in lines[1:]:
        text, label = line.split("\t")
        assert text.startswith(f"{verbs[label]} the ")

    random.seed(5)  # the corpus draws from a generator of its own
    build_corpus(tmp_path / "two", rows_per_class=10)
    assert one == {path.name: path.read_bytes() for path in (tmp_path / "two").iterdir()}


@pytest.mark.parametrize("rows", [9, 0, -1])
def test_build_corpus_refuses_too_few_rows(tmp_path, rows):
    with pytest.raises(ValueError, match=rf"^rows_per_class: expected at least 10, got {rows}$"):
        build_corpus(tmp_path / "corpus", rows_per_class=rows)
    assert list(tmp_path.iterdir()) == []


def test_the_standard_library_gives_prose():
    texts = collect(source_folder("python"), limit=200, seed=0)
    assert len(texts) >= 200
    assert all(5 <= len(text.split()) <= 64 for text in texts.values())
    assert not any("python" in text.lower() or "\t" in text for text in texts.values())
