"""Training, evaluation and the command line of ConsistentEE classifiers and decoders."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from consistentee_ext import __version__

if TYPE_CHECKING:
    from consistentee.model.modeling import ConsistentEEForSequenceClassification
    from consistentee_ext.configuration import ConsistentEEConfig
    from consistentee_ext.generation.configuration import ConsistentEECausalLMConfig
    from consistentee_ext.generation.modeling import ConsistentEEForCausalLM

__all__ = [
    "ConsistentEECausalLMConfig",
    "ConsistentEEConfig",
    "ConsistentEEForCausalLM",
    "ConsistentEEForSequenceClassification",
    "__version__",
]

# As in consistentee_ext.
_HOMES = {
    "ConsistentEECausalLMConfig": "consistentee_ext.generation.configuration",
    "ConsistentEEForCausalLM": "consistentee_ext.generation.modeling",
    "ConsistentEEConfig": "consistentee_ext.configuration",
    "ConsistentEEForSequenceClassification": "consistentee.model.modeling",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value
