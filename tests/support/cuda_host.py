"""The CUDA kernels compiled for the host, called with torch's CPU tensors.

Letters: B rows, T packed tokens, H hidden size; B' and T' are those that stay.
"""

from __future__ import annotations

import ctypes
import subprocess
from ctypes import POINTER, c_bool, c_char_p, c_float, c_int, c_int64, c_uint64, c_void_p
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from support.needs import COMPILER
from torch import Tensor

from consistentee_ext import names
from consistentee_ext.criteria import CRITERIA
from consistentee_ext.packed import ExitDecision, ExitResults, PackedBatch
from consistentee_ext.weights import STATE_ACTIVATIONS, HeadWeights, NormWeights

ROOT = Path(__file__).resolve().parents[2]
HEADERS = ROOT / "csrc"
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
POLICY_INPUTS = (None, *names.POLICY_INPUTS)
NORM_WARPS, POOL_TOKENS, SHARED_MEMORY = 8, 16, 48 << 10


class Plan(ctypes.Structure):
    _fields_: ClassVar = [
        *((n, c_void_p) for n in ("offsets", "cu_seqlens", "row_ids", "totals")),
        ("removes", c_bool),
    ]


class Rows(ctypes.Structure):
    _fields_: ClassVar = [
        *((name, c_void_p) for name in ("pooled", "cu_seqlens", "row_ids")),
        ("rows", c_int64),
        *((name, c_void_p) for name in ("keep", "tickets")),
    ]


class Head(ctypes.Structure):
    _fields_: ClassVar = [
        *((name, c_void_p) for name in HeadWeights._fields[:6]),
        *((name, c_int64) for name in ("hidden_size", "classes", "policy_size")),
        *((name, c_int64) for name in ("policy_input", "activation")),
        ("multi_label", c_bool),
    ]


class Decision(ctypes.Structure):
    _fields_: ClassVar = [
        ("criterion", c_int64),
        ("thresholds", c_void_p),
        *((name, c_int64) for name in ("threshold_stride", "layer", "max_streak")),
        ("last", c_bool),
    ]


class Results(ctypes.Structure):
    _fields_: ClassVar = [(name, c_void_p) for name in ExitResults._fields]


class Norm(ctypes.Structure):
    _fields_: ClassVar = [
        *((name, c_void_p) for name in ("hidden", "residual", "weight", "bias")),
        ("hidden_size", c_int64),
        ("eps", c_float),
    ]


class Pooling(ctypes.Structure):
    _fields_: ClassVar = [
        *((name, c_void_p) for name in ("cu_seqlens", "row_ids", "first_lengths")),
        *((name, c_void_p) for name in ("partial", "tickets")),
        *((name, c_bool) for name in ("mean", "pair")),
    ]


STRUCTS = (Plan, Rows, Head, Decision, Results, Norm, Pooling)
ARGUMENTS: dict[str, list[Any]] = {
    "run_plan": [c_uint64, *[c_void_p] * 3, c_int64, POINTER(Plan)],
    "run_copy_rows": [c_uint64, *[c_void_p] * 3, *[c_int64] * 3, c_void_p],
    "run_exit_rows": [c_uint64, c_int, *map(POINTER, (Rows, Head, Decision, Results, Plan))],
    "run_add_norm_tokens": [c_uint64, c_int, POINTER(Norm), c_int64, c_int],
    "run_add_norm_pool": [
        *(c_uint64, c_int, POINTER(Norm), POINTER(Pooling), c_int64, c_int64, c_void_p, c_int)
    ],
}


def compile_host(library: Path, headers: Path = HEADERS, *flags: str) -> Path:
    """Compile the kernels below `headers` into a shared library."""
    assert COMPILER is not None
    native = ROOT / "tests" / "native"
    command = [COMPILER, "-std=c++17", "-O1", "-fPIC", "-shared"]
    # Fortified jumps refuse those from stack to stack.
    command += ["-U_FORTIFY_SOURCE", "-Wno-unknown-pragmas", *flags]
    command += [f"-I{headers}", str(native / "cuda_host.cpp"), "-o", str(library)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return library


class Planned(NamedTuple):
    """What a `SurvivorPlan` points to, and `keep`."""

    offsets: Tensor
    cu_seqlens: Tensor
    row_ids: Tensor
    totals: Tensor
    keep: Tensor

    @classmethod
    def empty(cls, rows: int) -> Planned:
        """Filled with what no plan holds."""
        offsets, cu_seqlens = torch.full((rows,), -77), torch.full((rows + 1,), -77)
        row_ids, totals = torch.full((rows,), -77), torch.full((2,), -77)
        keep = torch.ones(rows, dtype=torch.bool)
        return cls(offsets.int(), cu_seqlens.int(), row_ids, totals.int(), keep)


class CudaHost:
    """Launches kernels; RuntimeError where a launch cannot end. `seed` orders the threads."""

    def __init__(self, library: Path) -> None:
        self._library = ctypes.CDLL(str(library))
        sizes = (c_int64 * len(STRUCTS))()
        self._library.struct_sizes(sizes)
        assert list(sizes) == [ctypes.sizeof(struct) for struct in STRUCTS], "a struct has changed"
        for name, arguments in ARGUMENTS.items():
            function = getattr(self._library, name)
            function.argtypes, function.restype = arguments, c_char_p

    def _run(self, name: str, *arguments: Any) -> None:
        message = getattr(self._library, name)(*arguments)
        if message is not None:
            raise RuntimeError(message.decode())

    def plan(
        self, batch: PackedBatch, keep: Tensor, seed: int = 0, removes: bool = True
    ) -> Planned:
        planned = Planned.empty(len(batch.row_ids))._replace(keep=keep)
        addresses = Plan(*(tensor.data_ptr() for tensor in planned[:4]), removes)
        _, cu_seqlens, row_ids = (tensor.data_ptr() for tensor in batch)
        rows = len(batch.row_ids)
        self._run("run_plan", seed, keep.data_ptr(), cu_seqlens, row_ids, rows, addresses)
        return planned

    def copy(
        self, batch: PackedBatch, planned: Planned, splits: int, out: Tensor, seed: int = 0
    ) -> None:
        rows = len(batch.row_ids)
        if rows == 0:
            return
        hidden, cu_seqlens, _ = (tensor.data_ptr() for tensor in batch)
        token_bytes = batch.hidden.shape[1] * batch.hidden.element_size()
        sizes = (rows, token_bytes, splits)
        offsets = planned.offsets.data_ptr()
        self._run("run_copy_rows", seed, hidden, cu_seqlens, offsets, *sizes, out.data_ptr())

    def exit_rows(
        self,
        batch: PackedBatch,
        pooled: Tensor,
        weights: HeadWeights,
        decision: ExitDecision,
        results: ExitResults,
        tickets: Tensor,
        seed: int = 0,
        removes: bool = True,
    ) -> Planned:
        """Decides B rows in place of `results`, and plans where those that stay go."""
        rows = len(batch.row_ids)
        planned = Planned.empty(rows)
        _, cu_seqlens, row_ids = (tensor.data_ptr() for tensor in batch)
        keep = planned.keep.data_ptr()
        addresses = [None if tensor is None else tensor.data_ptr() for tensor in weights[:6]]
        policy_size = 0 if weights.dense_bias is None else len(weights.dense_bias)
        head = Head(
            *addresses,
            pooled.shape[1],
            len(weights.classifier_bias),
            policy_size,
            POLICY_INPUTS.index(weights.policy_input),
            STATE_ACTIVATIONS.index(weights.state_activation),
            weights.multi_label,
        )
        thresholds = decision.thresholds
        how = Decision(
            CRITERIA.index(decision.criterion),
            thresholds.data_ptr(),
            thresholds.stride(0),
            *decision[2:],
        )
        self._run(
            "run_exit_rows",
            seed,
            DTYPES.index(pooled.dtype),
            Rows(pooled.data_ptr(), cu_seqlens, row_ids, rows, keep, tickets.data_ptr()),
            head,
            how,
            Results(*(tensor.data_ptr() for tensor in results)),
            Plan(*(tensor.data_ptr() for tensor in planned[:4]), removes),
        )
        return planned

    def add_norm_tokens(
        self, hidden: Tensor, residual: Tensor, norm: NormWeights, seed: int = 0
    ) -> None:
        dtype, erased, warps = _norm_arguments(hidden, residual, norm)
        self._run("run_add_norm_tokens", seed, dtype, erased, len(hidden), warps)

    def add_norm_pool(
        self,
        hidden: Tensor,
        residual: Tensor,
        norm: NormWeights,
        cu_seqlens: Tensor,
        pooling: str,
        tickets: Tensor,
        pooled: Tensor,
        seed: int = 0,
        row_ids: Tensor | None = None,
        first_lengths: Tensor | None = None,
    ) -> None:
        rows, longest = len(cu_seqlens) - 1, int(cu_seqlens.diff().max())
        mean, pair = pooling != "cls", pooling == "pair"
        splits = -(-longest // POOL_TOKENS) + pair
        # The first tokens need no sums: nothing may touch the place for them.
        partial = torch.full((rows, splits, hidden.shape[1]), torch.nan) if mean else None
        tensors = (cu_seqlens, row_ids, first_lengths, partial, tickets)
        addresses = (None if tensor is None else tensor.data_ptr() for tensor in tensors)
        target = Pooling(*addresses, mean, pair)
        dtype, erased, warps = _norm_arguments(hidden, residual, norm)
        out = pooled.data_ptr()
        self._run("run_add_norm_pool", seed, dtype, erased, target, rows, splits, out, warps)


def _norm_arguments(hidden: Tensor, residual: Tensor, norm: NormWeights) -> tuple[int, Norm, int]:
    size = hidden.shape[1]
    assert norm.bias is not None
    tensors = (hidden, residual, norm.weight, norm.bias)
    erased = Norm(*(tensor.data_ptr() for tensor in tensors), size, norm.eps)
    # As many warps as have room for a token each in what every device grants.
    warps = min(NORM_WARPS, (SHARED_MEMORY - 64) // (4 * size))
    return DTYPES.index(hidden.dtype), erased, warps
