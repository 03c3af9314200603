"""A device's ops as Triton kernels, with the semantics of those in csrc/cuda.

Letters: B rows, T packed tokens, H hidden size, C classes, P policy size, N rows the caller gave.
Nothing here waits for the device. All arithmetic is float32: values are widened as they are loaded.
"""

from consistentee_ext.ops.device_attention import attention
from consistentee_ext.ops.reference import embed, linear
from consistentee_ext.ops.triton.exit_step import exit_step_async
from consistentee_ext.ops.triton.norm import add_norm, add_norm_pool

__all__ = ["add_norm", "add_norm_pool", "attention", "embed", "exit_step_async", "linear"]
