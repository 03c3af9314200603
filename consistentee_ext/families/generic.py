"""Encoders of no family here, run as they are: see `consistentee_ext.layers.packed_pass`.

What cannot run so is refused with the reason.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator
from typing import Any

from torch import nn
from transformers import MODEL_MAPPING

from consistentee_ext.families.reader import Reader
from consistentee_ext.packed import InputLimits

# RoPE types whose angles depend on the longest row of a batch, beyond the positions that the model
# was first trained with; up to these they are fixed.
ANGLES_BY_LENGTH = ("dynamic", "longrope")
_NO_LIMIT = 2**31 - 1


def angles_go_by_length(config: Any) -> bool:
    """Whether rotary positions differ by the length of the row."""
    return any(rope["rope_type"] in ANGLES_BY_LENGTH for rope in _ropes(config))


def _ropes(config: Any) -> list[dict[str, Any]]:
    """The parameters of rotary positions, of each kind of layers."""
    parameters = getattr(config, "rope_parameters", None) or {}
    kinds = (parameters, *parameters.values())
    return [kind for kind in kinds if isinstance(kind, dict) and "rope_type" in kind]


def refusal(config: Any) -> str | None:
    """Why encoders of this configuration cannot run as they are; None if they may."""
    if getattr(config, "is_encoder_decoder", False):
        return "it is an encoder-decoder"
    if type(config) not in MODEL_MAPPING:
        return "transformers has no encoder of it"
    encoder: Any = MODEL_MAPPING[type(config)]
    # Some have several, all alike in this.
    encoder = encoder[0] if isinstance(encoder, tuple) else encoder
    if not encoder._supports_attention_backend:
        return "its attention cannot be replaced (_supports_attention_backend is False)"
    return None


def private_copy(module: nn.Module, reader: Reader) -> Any:
    """The module for inference, in the dtype and on the device of the reader; the caller's own,
    where that consumes it.
    """
    weight = next(module.parameters())
    out: Any = module if reader.consume else copy.deepcopy(module)
    for parameter in out.parameters():
        # What transformers keeps in a wider dtype stays in it, and so do tables of angles.
        if parameter.dtype == weight.dtype:
            parameter.data = parameter.data.to(reader.dtype)
    out.to(reader.device).requires_grad_(False)
    for part in out.modules():
        config = getattr(part, "config", None)
        if config is not None:
            config.output_attentions = config.output_hidden_states = config.use_cache = False
            config.return_dict = True
    return out.eval()


def find_layers(backbone: Any) -> list[nn.Module]:
    """The modules whose outputs transformers records as hidden states."""
    recorded = (getattr(backbone, "_can_record_outputs", None) or {}).get("hidden_states", ())
    specs = recorded if isinstance(recorded, (list, tuple)) else (recorded,)
    return [m for name, m in backbone.named_modules() if any(_is(m, name, s) for s in specs)]


def last_norm_of(backbone: Any) -> str | None:
    """The name of the norm behind the layers: a module behind them in the module that has them."""
    layers = find_layers(backbone)
    for name, module in backbone.named_modules():
        children = list(module.named_children())
        held = [isinstance(c, nn.ModuleList) and layers[:1] == list(c)[:1] for _, c in children]
        if layers and any(held):
            behind = children[held.index(True) + 1 :]
            norms = [child for child, part in behind if "Norm" in type(part).__name__]
            if len(norms) == 1:
                return f"{name}.{norms[0]}".lstrip(".")
    return None


def _is(module: nn.Module, name: str, spec: Any) -> bool:
    if hasattr(spec, "target_class"):  # an OutputRecorder
        if spec.layer_name is not None and f".{spec.layer_name.strip('.')}." not in f".{name}.":
            return False
        spec = spec.target_class or spec.class_name
    return name.endswith(spec) if isinstance(spec, str) else isinstance(module, spec)


def limits_of(backbone: Any) -> InputLimits:
    """Which inputs an encoder takes."""
    config = backbone.config.get_text_config()
    return InputLimits(
        vocab_size=backbone.get_input_embeddings().num_embeddings,
        type_vocab_size=config.type_vocab_size if takes_types(backbone) else 1,
        num_positions=min(_positions(backbone, config)),
        by_place=True,
    )


def takes_types(backbone: Any) -> bool:
    """Whether an encoder is called with segment ids. Some that have no table of them would take
    those of GPT-2, which are words.
    """
    entries = getattr(backbone.config.get_text_config(), "type_vocab_size", 0)
    return entries > 1 and "token_type_ids" in inspect.signature(backbone.forward).parameters


def _positions(backbone: Any, config: Any) -> Iterator[int]:
    """Bounds of a row's length."""
    yield getattr(config, "max_position_embeddings", None) or _NO_LIMIT
    for module in backbone.modules():
        padding = getattr(module, "padding_idx", None)
        table = getattr(module, "position_embeddings", None)
        if isinstance(table, nn.Embedding):
            # A table with a padding entry counts from behind it.
            yield table.num_embeddings - (0 if padding is None else padding + 1)
    for rope in _ropes(config):
        if rope["rope_type"] in ANGLES_BY_LENGTH:
            yield rope.get("original_max_position_embeddings") or config.max_position_embeddings
