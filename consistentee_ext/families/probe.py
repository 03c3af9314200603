"""Makes a `GenericStack`, and proves that it computes what its module does.

A small batch of random tokens goes through the module padded, with transformers' own attention,
and then packed: layers that mix tokens otherwise than by an attention show there, as do heads or
positions that the padded rows beside a row have a part in.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from consistentee_ext.families.generic import find_layers, limits_of, private_copy, takes_types
from consistentee_ext.families.reader import Reader
from consistentee_ext.inputs import PackedInputs
from consistentee_ext.layers.generic import GenericStack
from consistentee_ext.layers.hooks import ATTENTION, UnsupportedError, hook_layers, listen
from consistentee_ext.ops import LayerOps
from consistentee_ext.ops.reference import pack
from consistentee_ext.packed import PackedBatch

# Of the norm of what is compared: the two passes round otherwise.
TOLERANCE = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
_SPECIAL = ("bos", "cls", "eos", "mask", "pad", "sep", "unk")


class _Padded:
    """Counts the layers of a padded pass."""

    calls = 0

    def begin(self, arguments: Any) -> Any:
        return arguments

    def end(self, hidden: Tensor) -> Tensor:
        self.calls += 1
        return hidden

    def attend(self, *rest: Any) -> Tensor:
        raise UnsupportedError("its attention does not change with the implementation that is set")


def generic_stack(model: Any, backbone: Any, reader: Reader, ops: LayerOps) -> GenericStack:
    """The model as it is, a classifier, or the encoder of one with exits.

    Raises:
        UnsupportedError: it cannot run on packed rows, or gives something else there.
    """
    if getattr(model, "hf_quantizer", None) is not None:
        raise UnsupportedError("it is quantised")
    if any(hasattr(module, "_hf_hook") for module in model.modules()):
        raise UnsupportedError("its weights are placed by accelerate")
    try:
        with torch.no_grad():
            return _checked(_stack(model, backbone, reader), ops)
    except UnsupportedError:
        raise
    except Exception as error:  # whatever a model raises of what it was not written for
        reason = " ".join(str(error).split())
        raise UnsupportedError(f"it raises {type(error).__name__}: {reason}") from error


def _stack(model: Any, backbone: Any, reader: Reader) -> GenericStack:
    is_classifier = not hasattr(model, "heads")
    module = private_copy(model if is_classifier else backbone, reader)
    encoder = module.base_model if is_classifier else module
    layers = find_layers(encoder)
    if not layers:
        raise UnsupportedError("transformers does not say which of its modules are layers")
    hook_layers(layers)
    config = encoder.config.get_text_config()
    return GenericStack(
        module,
        is_classifier,
        num_layers=config.num_hidden_layers,
        limits=limits_of(encoder),
        padding_id=config.pad_token_id or 0,
        takes_types=takes_types(encoder),
        axes={},
    )


def _checked(stack: GenericStack, ops: LayerOps) -> GenericStack:
    """The stack with its axes, once it gave what its module does."""
    module: Any = stack.module
    config = module.config.get_text_config()
    inputs = _inputs(stack.limits, config)
    padded, watch = stack.padded(inputs.to(stack.device)), _Padded()
    module.set_attn_implementation("eager")
    output = listen(module, padded, watch)
    if watch.calls != stack.num_layers:
        raise UnsupportedError(f"it calls {watch.calls} layers and has {stack.num_layers}")
    if stack.is_classifier:
        expected, shape = output.logits.float(), (len(inputs.row_ids), module.config.num_labels)
        if expected.shape != shape:
            raise UnsupportedError(f"its logits have shape {tuple(expected.shape)}, not {shape}")
    else:
        expected = pack(output.last_hidden_state, padded["attention_mask"])[0]
    module.set_attn_implementation(ATTENTION)
    found = stack(inputs, ops, _all_stay, learn=True).hidden
    _compare("its layers compute something else on packed rows", found, expected, stack.dtype)
    length = int(inputs.cu_seqlens[2] - inputs.cu_seqlens[1])
    alone = stack(_second(inputs), ops, _all_stay).hidden
    beside = found[1:2] if stack.is_classifier else found[inputs.max_length :][:length]
    _compare("what it gives of a row depends on the others", alone, beside, stack.dtype)
    return stack


def _all_stay(layer: int, batch: PackedBatch) -> PackedBatch:
    return batch


def _compare(what: str, found: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    if torch.get_float32_matmul_precision() != "highest":  # TF32, or bfloat16 on a CPU
        dtype = torch.bfloat16
    difference, most = float((found - expected).norm() / expected.norm()), TOLERANCE[dtype]
    if not difference <= most:  # neither is NaN
        raise UnsupportedError(
            f"{what}: expected a relative difference of at most {most:g}, got {difference:.1e}"
        )


def _inputs(limits: Any, config: Any) -> PackedInputs:
    """Rows of random tokens, special ones among them.

    Neither their number nor the length of the longest is a size in the configuration.
    """
    sizes = {value for value in vars(config).values() if isinstance(value, int)}
    longest, rows = (next(n for n in range(low, 99) if n not in sizes) for low in (11, 4))
    lengths = torch.linspace(longest, 1, rows).int()
    offsets = nn.functional.pad(lengths.cumsum(0, dtype=torch.int32), (1, 0))
    total = int(offsets[-1])
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(limits.vocab_size, (total,), generator=generator)
    special = [getattr(config, f"{name}_token_id", None) for name in _SPECIAL]
    known = [i for i in special if isinstance(i, int) and 0 <= i < limits.vocab_size]
    ids[1 : 1 + len(known)] = torch.tensor(known, dtype=torch.int64)
    types = torch.randint(limits.type_vocab_size, (total,), generator=generator)
    return PackedInputs(ids, types, torch.zeros_like(ids), offsets, torch.arange(rows))


def _second(inputs: PackedInputs) -> PackedInputs:
    """The second row alone."""
    first, last = inputs.cu_seqlens[1:3].tolist()
    ids, types, positions = (part[first:last] for part in inputs[:3])
    offsets = torch.tensor([0, last - first], dtype=torch.int32)
    return PackedInputs(ids, types, positions, offsets, torch.zeros(1, dtype=torch.int64))
