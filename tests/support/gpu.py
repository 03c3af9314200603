"""Where the tests of the device's kernels run: on a card, or in Triton's interpreter.

Without a card they are skipped; with CONSISTENTEE_FAIL_WITHOUT_CUDA=1 that is a failure. With
TRITON_INTERPRET=1 they are rehearsed on the CPU by the Triton kernels.
"""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from torch import Tensor

from consistentee_ext.backend import availability

WANTED = os.environ.get("CONSISTENTEE_FAIL_WITHOUT_CUDA") == "1"
CARD = torch.cuda.is_available()
REHEARSED = not CARD and not WANTED and os.environ.get("TRITON_INTERPRET") == "1"
if not (CARD or WANTED or REHEARSED):
    pytest.skip("torch finds no CUDA device", allow_module_level=True)

DEVICE = torch.device("cpu" if REHEARSED else "cuda")
on_a_card = pytest.mark.skipif(REHEARSED, reason="needs a card")


def require(backend: str) -> None:
    """Skip, or fail where a card is wanted, unless the backend runs on the device."""
    found = availability(backend, DEVICE)
    if not found.usable:
        (pytest.fail if WANTED else pytest.skip)(f"{backend}: {found.reason}")


def on_device(value: tuple[Any, ...]) -> Any:
    """A named tuple with its tensors on the device."""
    moved = (v.to(DEVICE) if isinstance(v, Tensor) else v for v in value)
    return type(value)(*moved)


def assert_near(found: Tensor, exact: Tensor, eager: Tensor, floor: float = 1e-6) -> None:
    """The error is at most twice that of eager PyTorch in the same dtype, plus a floor.

    The floor is relative to the largest value, but no smaller than it is.
    """
    found, exact, eager = (tensor.double().cpu() for tensor in (found, exact, eager))
    error, known = (found - exact).abs().max(), (eager - exact).abs().max()
    most = 2 * known + floor * exact.abs().max().clamp(min=1.0)
    assert error <= most, f"error {error:.3g}, eager PyTorch {known:.3g}, at most {most:.3g}"
