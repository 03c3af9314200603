"""Packages that only decoders need."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def needing(package: str) -> Iterator[None]:
    """Say in one line what to install, where the block cannot import it.

    Raises:
        ValueError: an import failed.
    """
    try:
        yield
    except ImportError as error:
        raise ValueError(
            f"{package}: expected this package, found none; pip install 'consistentee[generation]'"
        ) from error
