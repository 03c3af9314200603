"""Early-exit inference on packed batches; see `FastEarlyExitEncoder`."""

from importlib.metadata import PackageNotFoundError, version

from consistentee_ext.backend import backend_report
from consistentee_ext.encoder import FastEarlyExitEncoder
from consistentee_ext.output import EarlyExitOutput

__all__ = ["EarlyExitOutput", "FastEarlyExitEncoder", "__version__", "backend_report"]

try:
    __version__ = version("consistentee")
except PackageNotFoundError:  # a source tree that is not installed
    __version__ = "unknown"
