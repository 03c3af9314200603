"""Early-exit inference on packed batches; see `FastEarlyExitEncoder`."""

from consistentee_ext.backend import backend_report
from consistentee_ext.encoder import EarlyExitOutput, FastEarlyExitEncoder

__all__ = ["EarlyExitOutput", "FastEarlyExitEncoder", "backend_report"]
