"""The CUDA library of the installed consistentee loads and registers its ops: a script, not a test.

It needs a torch built for CUDA, and no GPU. Under a torch without CUDA the library must stay out.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import torch

import consistentee_ext

OPS = ("add_norm_", "add_norm_pool_", "event_record", "event_wait", "exit_step_async")


_C: Any = importlib.import_module("consistentee_ext._C")  # compiled


def main() -> None:
    library = Path(consistentee_ext.__file__).with_name("libconsistentee_cuda.so")
    assert library.is_file(), "the wheel was built without the CUDA library"
    report = consistentee_ext.backend_report()
    if not torch.backends.cuda.is_built():
        assert "this torch is built without CUDA" in report, report
        print(f"torch {torch.__version__}: the CUDA library stays out")
        return
    torch.ops.load_library(str(library))
    has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
    missing = [name for name in OPS if not has_kernel(f"consistentee::{name}", "CUDA")]
    assert not missing, f"no CUDA kernel is registered for {missing}"
    print(f"torch {torch.__version__}: {library.name} loads, {len(OPS)} ops have CUDA kernels")
    print(f"compiled for {' '.join(_C.build_info()['cuda_architectures'])}")


if __name__ == "__main__":
    main()
