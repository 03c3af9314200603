"""What computes products of each precision on this processor."""

from __future__ import annotations

import os

import torch

from consistentee_ext.ops import onednn, onednn_int8

_LIMIT = "ONEDNN_MAX_CPU_ISA"  # in the environment: instructions that oneDNN is to do without


def product_report() -> list[str]:
    """One line a precision: the library and its instructions, and what is emulated."""
    vectors = "AVX-512" if torch.cpu._is_avx512_supported() else "AVX2"
    narrow = "AMX" if torch.cpu._is_amx_tile_supported() else None
    return [
        f"float32 products: {_library(torch.float32)}, {vectors} at most{_limit()}",
        f"bfloat16 products: {_bfloat16(narrow)}{_limit()}",
        f"int8 products: {_int8(narrow, vectors)}{_limit()}",
    ]


def _library(dtype: torch.dtype) -> str:
    return "oneDNN" if onednn.is_available(dtype) else "plain PyTorch"


def _bfloat16(narrow: str | None) -> str:
    library = _library(torch.bfloat16)
    if not onednn.is_fast(torch.bfloat16):
        return f"{library}, emulated in float32: slower than float32"
    return f"{library}, {narrow or 'AVX-512 bf16'}"


def _int8(narrow: str | None, vectors: str) -> str:
    levels, reason = onednn_int8.activation_levels()
    if levels is None:
        return f"plain PyTorch, exact and slow: {reason}"
    if levels < onednn_int8.LEVELS[0]:
        return f"oneDNN, {vectors} without VNNI, {reason}: more would saturate"
    return f"oneDNN, {narrow or 'VNNI'}, {reason}"


def _limit() -> str:
    limit = os.environ.get(_LIMIT)
    return f" ({_LIMIT}={limit})" if limit else ""
