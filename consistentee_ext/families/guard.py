"""Refuses a model that computes something else than its family's files read.

The engine reads weights and runs arithmetic of its own. A module that was replaced, wrapped or
given another forward would be left out of that silently, and every answer would be wrong.
"""

from __future__ import annotations

from torch import nn

# Where the code may stand that a module's forward runs: what the families' files were read from,
# and our own classifiers. peft, quantisers and a caller's own classes are elsewhere.
_KNOWN = ("torch.nn.modules.", "transformers.", "consistentee.", "consistentee_ext.")


def check_modules(model: nn.Module) -> None:
    """Raise ValueError, naming the module, unless every forward is the library's own."""
    for name, module in model.named_modules():
        where = f"model.{name}" if name else "model"
        source = _source(type(module).forward)
        if not source.startswith(_KNOWN):
            raise ValueError(
                f"{where}: expected a module of transformers or torch.nn, got "
                f"{type(module).__name__}, whose forward is that of {source}{merge_hint(source)}"
            )
        # accelerate, with a device map, wraps forward only to move tensors.
        if "forward" in vars(module) and not hasattr(module, "_hf_hook"):
            raise ValueError(f"{where}: expected the forward of its class, got one set on it")
        # transformers' own hooks record outputs.
        hooks = (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
        strange = [hook for hook in hooks if not _source(hook).startswith(_KNOWN)]
        if strange:
            raise ValueError(
                f"{where}: expected no forward hooks, as the engine would not call them, got one "
                f"of {_source(strange[0])}"
            )


def merge_hint(source: str) -> str:
    """What to do about a module that peft made, by where its code is; nothing about others."""
    return "; merge its adapters first (merge_and_unload)" if source.startswith("peft") else ""


def _source(function: object) -> str:
    """The module that defines a function or the class of an object."""
    return getattr(function, "__module__", None) or type(function).__module__
