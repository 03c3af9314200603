"""The engines: one interface, `Engine.advance`, run op by op, in one C++ call, on a device, or
through the modules of Hugging Face.
"""

from __future__ import annotations

from functools import partial

from consistentee_ext.backend import DEVICE_BACKENDS
from consistentee_ext.engines.base import Engine
from consistentee_ext.engines.device import DeviceEngine
from consistentee_ext.engines.eager import EagerEngine
from consistentee_ext.engines.generic import GenericEngine
from consistentee_ext.engines.graphs import PassGraphs, Recorder
from consistentee_ext.engines.launcher import Launcher, declines
from consistentee_ext.engines.native import NativeEngine
from consistentee_ext.exits.exits import Exits
from consistentee_ext.layers import GenericStack, Stack
from consistentee_ext.ops import load_device_ops, load_layer_ops, load_ops

__all__ = ["Engine", "choose_engine"]


def choose_engine(stack: Stack | GenericStack, exits: Exits, backend: str, sync: str) -> Engine:
    """The fastest engine of a backend that takes the model; `sync` is for those of a device."""
    if isinstance(stack, GenericStack):
        on_host = "torch" if backend in DEVICE_BACKENDS else backend
        return GenericEngine(stack, exits, load_layer_ops(backend), load_ops(on_host))
    if backend in DEVICE_BACKENDS:
        ops = load_device_ops(backend)
        device = stack.embedding.words.device
        graphs = None
        if device.type == "cuda":  # not on the CPU of an interpreter
            graphs = PassGraphs(stack, exits, ops, partial(Recorder, device))
        declined = "as Triton's are" if backend == "triton" else declines(stack, exits)
        launcher = None if declined else Launcher(stack, exits)
        return DeviceEngine(stack, exits, ops, sync, graphs, launcher, declined)
    if backend == "cpu" and NativeEngine.takes(stack, exits):
        return NativeEngine(stack, exits)
    return EagerEngine(stack, exits, load_ops(backend))
