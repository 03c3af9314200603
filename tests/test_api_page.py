"""docs/api.md is what the docstrings say."""

from __future__ import annotations

import importlib.util
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"


def test_the_page_is_up_to_date() -> None:
    specification = importlib.util.spec_from_file_location("make_api", DOCS / "make_api.py")
    assert specification is not None
    assert specification.loader is not None
    make_api = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(make_api)
    written = (DOCS / "api.md").read_text(encoding="utf-8")
    assert written == make_api.page(), "run python docs/make_api.py"
