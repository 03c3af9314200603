"""The device's ops as Triton kernels, with the semantics of those in csrc/cuda.

Letters: B rows, T packed tokens, H hidden size, C classes, P policy size, N rows the caller gave.
Nothing here waits for the device. All arithmetic is float32: values are widened as they are loaded.
"""

from consistentee_ext.triton_kernels.exit_step import exit_step_ahead
from consistentee_ext.triton_kernels.normalize import add_norm_, add_norm_pool_

__all__ = ["add_norm_", "add_norm_pool_", "exit_step_ahead"]
