"""Where the tests of the device's kernels run: on a card, or in Triton's interpreter.

They are marked `needs_device`, or `needs_cuda` where only a card will do: without one they are
skipped, or fail with CONSISTENTEE_FAIL_WITHOUT_CUDA=1. With TRITON_INTERPRET=1 the Triton kernels
rehearse the former on the CPU.
"""

from __future__ import annotations

from typing import Any

import torch
from support.needs import INTERPRETER, wanted
from torch import Tensor

CARD = torch.cuda.is_available()
REHEARSED = not CARD and not wanted("cuda") and INTERPRETER
DEVICE = torch.device("cpu" if REHEARSED else "cuda")


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
