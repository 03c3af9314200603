"""Early-exit inference on packed batches; see `FastEarlyExitEncoder`."""

from consistentee_ext.backend import backend_report
from consistentee_ext.encoder import EarlyExitOutput, FastEarlyExitEncoder
from consistentee_ext.heads import ExitRule

__all__ = ["EarlyExitOutput", "ExitRule", "FastEarlyExitEncoder", "backend_report"]
