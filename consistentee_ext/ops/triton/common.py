"""What the kernels share: their tiles, and who of several programs ends last."""

from __future__ import annotations

import triton
import triton.language as tl

TILE = 4096  # elements a program of the layer norm, or of the copy, takes at a time
# Products and sums fuse, whatever a version of Triton does where it is not told.
FUSED = {"enable_fp_fusion": True}


@triton.jit
def ends_last(counter: tl.tensor, programs: tl.tensor) -> tl.tensor:
    """Whether the others of `programs` have all counted here before: what they stored is seen."""
    # One thread does the atomic. The barrier before it puts the stores of all threads ahead of its
    # release; the one behind lets no thread read before its acquire.
    tl.debug_barrier()
    before = tl.atomic_add(counter, 1, sem="acq_rel", scope="gpu")
    tl.debug_barrier()
    return before == programs - 1
