"""Whether this torch attends to packed tokens, as csrc/device/attention.cpp asks it to."""

from __future__ import annotations

import torch

OP = "_flash_attention_forward"
ARGUMENTS = (
    *("query", "key", "value", "cum_seq_q", "cum_seq_k", "max_q", "max_k"),
    *("dropout_p", "is_causal", "return_debug_mask"),
)
RESULTS = 5
DTYPES = (torch.float16, torch.bfloat16)
LEAST_CAPABILITY = (8, 0)


def flash_arguments(op: str = OP) -> int:
    """How many arguments the aten op has: `ARGUMENTS`, and others that are None by default. 0 where
    there is none, or one of another schema.
    """
    if not hasattr(torch.ops.aten, op):
        return 0
    schema = getattr(torch.ops.aten, op).default._schema
    first, rest = schema.arguments[: len(ARGUMENTS)], schema.arguments[len(ARGUMENTS) :]
    same = tuple(argument.name for argument in first) == ARGUMENTS
    optional = all(a.has_default_value() and a.default_value is None for a in rest)
    return len(schema.arguments) if same and optional and len(schema.returns) == RESULTS else 0


def why_no_flash(device: torch.device, dtype: torch.dtype, head_size: int) -> str | None:
    """What is missing to attend by it; None for nothing."""
    if device.type != "cuda":
        return f"as there is no flash attention on {device.type}"
    if dtype not in DTYPES:
        return f"as there is no flash attention in {dtype}"
    if head_size % 8 or head_size > 256:
        return f"as there is no flash attention for heads of {head_size}"
    if torch.cuda.get_device_capability(device) < LEAST_CAPABILITY:
        return "as there is no flash attention on a card before compute capability 8.0"
    return None if flash_arguments() else "as this torch has no flash attention of the known schema"
