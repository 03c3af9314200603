"""A bare GPU machine, for rehearsals: PYTHONPATH=tests/support/bare_machine python ...

Every interpreter started so sees, of what is installed, only the packages that such a machine has
(and the packages these need), and no network.
"""

from __future__ import annotations

import os
import re
import socket
import sys
from collections.abc import Iterator, Sequence
from importlib.machinery import ModuleSpec, PathFinder
from importlib.metadata import DistributionFinder, PathDistribution
from types import ModuleType
from typing import Any

PACKAGES = {
    # what runs the check
    *("torch", "torchgen", "functorch", "triton", "transformers", "numpy", "safetensors"),
    *("pytest", "_pytest", "py", "pytest_benchmark", "hypothesis"),
    *("pip", "setuptools", "pkg_resources", "_distutils_hack", "wheel"),
    *("pybind11", "cmake", "ninja"),
    # what else is there
    *("scipy", "accelerate", "typer", "rich", "cuda"),
    # what these need
    *("tokenizers", "huggingface_hub", "hf_xet", "regex", "tqdm", "yaml", "_yaml", "packaging"),
    *("httpx", "httpx2", "httpcore", "httpcore2", "anyio", "h11", "idna", "certifi", "truststore"),
    *("filelock", "fsspec", "sympy", "mpmath", "networkx", "jinja2", "markupsafe"),
    *("typing_extensions", "annotated_doc", "click", "shellingham", "pygments", "markdown_it"),
    *("mdurl", "psutil", "pluggy", "iniconfig", "cpuinfo", "sortedcontainers", "attr", "attrs"),
    *("exceptiongroup", "tomli", "nvidia", "_hypothesis_pytestplugin", "_hypothesis_globals"),
    *("_hypothesis_ftz_detector",),
    "consistentee",
}
INSTALLED = f"{os.sep}site-packages{os.sep}"
OTHER_NAMES = {"pyyaml": "yaml", "py_cpuinfo": "cpuinfo", "markdown_it_py": "markdown_it"}


def _hidden(name: str) -> bool:
    # setuptools stands in for a module of the standard library, distutils.
    known = name in PACKAGES or name in sys.stdlib_module_names
    return not known and not name.startswith(("__editable__", "nvidia_", "cuda_"))


class BareMachineFinder(PathFinder):
    """Finds no package that the machine would not have, nor its metadata."""

    @classmethod
    def find_spec(
        cls, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        spec = super().find_spec(fullname, path, target)
        top = fullname.partition(".")[0]
        if spec is None or not _hidden(top):
            return spec
        places = [spec.origin or "", *(spec.submodule_search_locations or ())]
        # Not what a package brings along for itself, in a folder of its own.
        return None if any(INSTALLED + top in place for place in places) else spec

    @classmethod
    def find_distributions(
        cls, context: DistributionFinder.Context | None = None
    ) -> Iterator[PathDistribution]:
        found = super().find_distributions(context or DistributionFinder.Context())
        for distribution in found:
            name = re.sub(r"[-.]+", "_", distribution.metadata["Name"]).lower()
            if not _hidden(OTHER_NAMES.get(name, name)):
                yield distribution


def _connect(self: socket.socket, address: Any) -> None:
    """Sockets between processes of this machine are no network."""
    if self.family != socket.AF_UNIX:
        raise OSError(f"a bare machine has no network: {address}")
    CONNECT(self, address)


CONNECT = socket.socket.connect
socket.socket.connect = _connect  # type: ignore[assignment]
sys.meta_path[sys.meta_path.index(PathFinder)] = BareMachineFinder
