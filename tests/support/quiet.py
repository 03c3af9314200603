"""What libraries print to their users beside results."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

LIBRARIES = ("transformers", "accelerate", "sentence_transformers", "torch", "py.warnings")


class _Keeper(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


@contextmanager
def quiet() -> Iterator[None]:
    """Fails where a library warns or logs an error inside."""
    keeper, loggers = _Keeper(), [logging.getLogger(name) for name in LIBRARIES]
    for logger in loggers:
        logger.addHandler(keeper)
    try:
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            yield
    finally:
        for logger in loggers:
            logger.removeHandler(keeper)
    assert keeper.messages == []
    assert [str(warning.message) for warning in warned] == []
