"""Processes that fork after a model was loaded, as preloading servers do.

OpenMP's threads do not live on in a child, and a child that waits for them waits for ever. So
loading starts none; where a pass has, the child runs on one thread.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class _Threads:
    started = False


def threads_start() -> None:
    """From now on there may be threads that a child will lack."""
    _Threads.started = True


@contextmanager
def without_threads() -> Iterator[None]:
    """What runs here starts no threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _in_child() -> None:
    if _Threads.started:
        torch.set_num_threads(1)


os.register_at_fork(after_in_child=_in_child)
