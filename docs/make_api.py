"""Writes docs/api.md from the docstrings of the public names: ``python docs/make_api.py``."""

from __future__ import annotations

import importlib
import re
from functools import cache
from pathlib import Path

import griffe
from griffe2md import ConfigDict, render_object_docs

PAGE = Path(__file__).with_name("api.md")
PACKAGES = ("consistentee_ext", "consistentee")
INTRODUCTION = """# Public names

Written by `python docs/make_api.py` from the docstrings. [glossary.md](glossary.md) defines the
words; `consistentee --help` describes the command line.
"""
STYLE = ConfigDict(
    docstring_section_style="list",
    filters=["!^_"],
    heading_level=3,
    show_if_no_docstring=False,
    show_object_full_path=False,
    show_root_full_path=False,
    show_signature_annotations=False,
    summary=False,
)


def page() -> str:
    """The whole page."""
    parts = [INTRODUCTION]
    for package in PACKAGES:
        module = importlib.import_module(package)
        parts.append(f"## {package}\n")
        for name in sorted(set(module.__all__) - {"__version__"}):
            found = getattr(module, name)
            top, _, path = f"{found.__module__}.{name}".partition(".")
            text = render_object_docs(_sources(top)[path], STYLE)
            # Types as words: there is nothing on the page to link to.
            text = re.sub(r"\[([^\]]*)\]\(#[^)]*\)", r"\1", text)
            parts.append(text.replace(f"`{found.__module__}.", "`"))
    return "\n".join(parts).rstrip() + "\n"


@cache
def _sources(package: str) -> griffe.Object | griffe.Alias:
    return griffe.load(package, docstring_parser="google")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
