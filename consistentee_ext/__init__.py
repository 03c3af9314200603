"""Early-exit inference on packed batches; see `FastEarlyExitEncoder` and `FastEarlyExitDecoder`."""

from __future__ import annotations

import importlib
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from consistentee_ext.backend import backend_report
    from consistentee_ext.causal_lm import classifier_from_causal_lm
    from consistentee_ext.decoder import FastEarlyExitDecoder
    from consistentee_ext.encoder import FastEarlyExitEncoder
    from consistentee_ext.generation.texts import GeneratedText
    from consistentee_ext.output import EarlyExitOutput

__all__ = [
    "EarlyExitOutput",
    "FastEarlyExitDecoder",
    "FastEarlyExitEncoder",
    "GeneratedText",
    "__version__",
    "backend_report",
    "classifier_from_causal_lm",
]

# Modules of the names above, imported when a name is first asked for: they bring torch and
# transformers.
_HOMES = {
    "EarlyExitOutput": "output",
    "FastEarlyExitDecoder": "decoder",
    "FastEarlyExitEncoder": "encoder",
    "GeneratedText": "generation.texts",
    "backend_report": "backend",
    "classifier_from_causal_lm": "causal_lm",
}

try:
    __version__ = version("consistentee")
except PackageNotFoundError:  # a source tree that is not installed
    __version__ = "unknown"


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
