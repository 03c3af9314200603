"""Builds a corpus from docstrings of installed libraries; the label is the library.

A row is the first paragraph of prose of a docstring; its label is ``numpy``, ``python`` (the
standard library), ``torch`` or ``transformers``. Sources are parsed, never imported.
"""

from __future__ import annotations

import ast
import importlib.util
import inspect
import random
import re
import string
import sysconfig
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from consistentee.atomic_files import whole_file
from consistentee_ext.progress import progress_bar

LABELS = ("numpy", "python", "torch", "transformers")
MIN_WORDS = 5
MAX_WORDS = 64
TEST_SHARE = 0.2
DEV_SHARE = 0.1
MIN_ROWS_PER_CLASS = 10  # one row for dev

Row = tuple[str, str]  # sentence, label

# Tests, and third-party packages.
_SKIPPED_FOLDERS = {
    *("test", "tests", "idle_test"),
    *("site-packages", "dist-packages", "_vendor", "_vendored", "third_party"),
}
# The docstring of a compiled function is the longest string among the arguments of such a call.
_SETS_DOCSTRING = {"add_newdoc", "add_newdoc_for_scalar_type", "add_docstr", "_add_docstr"}

_MARKUP = re.compile(r":[\w:]+:(?=`)|\[(?=`)|(?<=`)\](?:\([^)]*\))?|(?<!\w)\*+|(?<=\w)\*+(?!\w)")
_NOT_PROSE = re.compile(
    r"^[^A-Za-z]|^\w+ ?\(|^\S+ \([^)]*\)?:|^[A-Z]\w*:"  # bullets, signatures, parameters, headings
    r"|[=<>{}|\\]|::|--|\.\. |https?:|:$"  # code, tables, directives, links, lead-ins
)
_PLAIN_WORD = re.compile(r"[A-Za-z'-]+[.,;:)]?")
# Rows that name a library are left out: that word alone would decide the label.
_LIBRARY_NAME = re.compile(r"numpy|\bnp\b|torch|transformers|hugging ?face|python", re.IGNORECASE)


def build_corpus(
    directory: str | Path, rows_per_class: int = 1500, seed: int = 0
) -> dict[str, int]:
    """Write ``train.tsv``, ``dev.tsv`` and ``test.tsv`` (columns sentence, label) into a folder.

    Every label has the same number of rows in a split: a tenth of its rows are for dev, a fifth for
    test. No two rows, in the same or different splits, differ only in names and numbers. The same
    installed versions and the same seed give the same files.

    Args:
        directory: made if it is missing.
        rows_per_class: most rows of a label in all splits together; fewer if a library has fewer.
        seed: determines the source files that are read, and the split of each row.

    Returns:
        The number of rows of each split.

    Raises:
        ValueError: `rows_per_class` is below 10.
    """
    if rows_per_class < MIN_ROWS_PER_CLASS:
        raise ValueError(
            f"rows_per_class: expected at least {MIN_ROWS_PER_CLASS}, got {rows_per_class}"
        )
    # A quarter more than needed: texts that two libraries have are dropped.
    limit = rows_per_class + rows_per_class // 4
    texts = {}
    with progress_bar(len(LABELS), "corpus", "library") as bar:
        for label in LABELS:
            texts[label] = collect(source_folder(label), limit, seed)
            bar.update()
    splits = split_rows(texts, rows_per_class, seed)
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    for name, rows in splits.items():
        write_rows(directory / f"{name}.tsv", rows)
    return {name: len(rows) for name, rows in splits.items()}


def source_folder(label: str) -> Path:
    """The folder of a library's sources; the package is found, not imported."""
    if label == "python":
        return Path(sysconfig.get_path("stdlib"))
    spec = importlib.util.find_spec(label)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"the corpus needs the sources of {label}: not installed")
    return Path(spec.origin).parent


def collect(folder: Path, limit: int, seed: int) -> dict[str, str]:
    """About ``limit`` first paragraphs of a folder's docstrings, by their normal form.

    Files are read in shuffled order, so that the limit does not cut off a part of the library.
    """
    files = sorted(
        path
        for path in folder.rglob("*.py")
        if _SKIPPED_FOLDERS.isdisjoint(path.relative_to(folder).parts)
    )
    random.Random(seed).shuffle(files)
    texts: dict[str, str] = {}
    for path in files:
        if len(texts) >= limit:
            break
        for docstring in docstrings(path.read_bytes()):
            text = first_paragraph(docstring)
            if text is not None and not _LIBRARY_NAME.search(text):
                texts.setdefault(normal_form(text), text)
    return texts


def docstrings(source: bytes) -> Iterator[str]:
    """The docstrings of a module, its classes and functions, and compiled functions it documents.

    A file that this Python cannot parse yields none.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)
            tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return
    for node in _statements(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            text = ast.get_docstring(node)
            if text:
                yield text
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            function = node.value.func
            if getattr(function, "attr", getattr(function, "id", None)) in _SETS_DOCSTRING:
                values = (getattr(part, "value", None) for part in ast.walk(node.value))
                texts = [value for value in values if isinstance(value, str)]
                yield inspect.cleandoc(max(texts, key=len, default=""))


def _statements(tree: ast.AST) -> Iterator[ast.AST]:
    """The tree's statements; without the expressions the walk is several times faster."""
    pending = [tree]
    while pending:
        node = pending.pop()
        yield node
        children = ast.iter_child_nodes(node)
        pending += [child for child in children if isinstance(child, (ast.stmt, ast.ExceptHandler))]


def first_paragraph(docstring: str) -> str | None:
    """The first paragraph that is prose, as one line without markup, cut at 64 words; else None.

    Only the first two paragraphs are tried: the docstring of a compiled function begins with its
    signature.
    """
    for paragraph in re.split(r"\n\s*\n", docstring.strip())[:2]:
        text = _MARKUP.sub("", " ".join(paragraph.split())).replace("`", "")
        words = text.split()
        plain = sum(_PLAIN_WORD.fullmatch(word) is not None for word in words)
        if len(words) >= MIN_WORDS and plain >= 0.7 * len(words) and not _NOT_PROSE.search(text):
            return " ".join(words[:MAX_WORDS])
    return None


def normal_form(text: str) -> str:
    """Lower-case words; names and numbers are masked, so texts that differ only in these are equal.

    Libraries repeat a docstring for each model, backend or dtype, with another name in it.
    """
    words = (word.strip(string.punctuation) for word in text.split())
    first = next(words, "")
    return " ".join(
        [_mask(first.lower() if first.istitle() else first), *(_mask(word) for word in words)]
    )


def _mask(word: str) -> str:
    return word if word.islower() and word.replace("-", "").isalpha() else "_"


def split_rows(
    texts: dict[str, dict[str, str]], rows_per_class: int, seed: int
) -> dict[str, list[Row]]:
    """Balanced, shuffled rows of train, dev and test from each label's texts by normal form.

    A normal form that two labels have is left out.
    """
    labels_with = Counter(form for own in texts.values() for form in own)
    generator = random.Random(seed)
    pools = {}
    for label, own in texts.items():
        pools[label] = [(text, label) for form, text in own.items() if labels_with[form] == 1]
        generator.shuffle(pools[label])
    rows = min(rows_per_class, *(len(pool) for pool in pools.values()))
    dev = round(DEV_SHARE * rows)
    test = round(TEST_SHARE * rows)
    bounds = {"train": (dev + test, rows), "dev": (0, dev), "test": (dev, dev + test)}
    splits = {
        name: [row for pool in pools.values() for row in pool[start:stop]]
        for name, (start, stop) in bounds.items()
    }
    for split in splits.values():
        generator.shuffle(split)
    return splits


def write_rows(path: Path, rows: list[Row]) -> None:
    """Write a tab-separated table of sentences and labels, completely or not at all."""
    lines = ["sentence\tlabel", *("\t".join(row) for row in rows)]
    with whole_file(path) as partial:
        partial.write_text("\n".join(lines) + "\n", encoding="utf-8")
