"""An exit step and a pass of the installed consistentee, native against reference: a script, not a
test.
"""

from __future__ import annotations

import importlib
from typing import Any

import torch
from transformers import BertConfig, BertForSequenceClassification

import consistentee_ext
from consistentee_ext.ops import load_ops
from consistentee_ext.packed import ExitDecision, ExitResults, PackedBatch
from consistentee_ext.weights import HeadWeights

_C: Any = importlib.import_module("consistentee_ext._C")  # compiled


def main() -> None:
    torch.manual_seed(0)
    rows, hidden_size, classes = 5, 19, 3
    cu_seqlens = torch.tensor([0, 3, 4, 9, 11, 18], dtype=torch.int32)
    batch = PackedBatch(torch.randn(18, hidden_size), cu_seqlens, torch.arange(rows))
    pooled = torch.randn(rows, hidden_size)
    weights = HeadWeights(torch.randn(classes, hidden_size), torch.randn(classes))
    thresholds = torch.full((rows,), 0.9)
    decision = ExitDecision("confidence", thresholds, layer=2, max_streak=3, last=False)
    results = {}
    for backend in ("cpu", "torch"):
        written = ExitResults.empty(rows, classes)
        survivors = load_ops(backend).exit_step(batch, pooled, weights, decision, written)
        results[backend] = (*survivors, *written)
    for native, reference in zip(results["cpu"], results["torch"], strict=True):
        torch.testing.assert_close(native, reference, rtol=1e-5, atol=1e-5)
    stayed = results["cpu"][2].numel()
    assert 0 < stayed < rows, "the check wants rows that leave and rows that stay"

    config = BertConfig(
        vocab_size=50,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
    )
    model = BertForSequenceClassification(config).eval()
    ids = torch.randint(0, 50, (3, 7))
    native, reference = (
        consistentee_ext.FastEarlyExitEncoder(model, backend=backend)(ids).logits
        for backend in ("cpu", "torch")
    )
    torch.testing.assert_close(native, reference, rtol=1e-4, atol=1e-5)

    built = _C.build_info()
    print(f"consistentee {built['version']} at {consistentee_ext.__file__}")
    print(f"built against torch {built['torch_version']}, runs under {torch.__version__}")
    print(f"exit step: {rows - stayed} of {rows} rows left; it and a pass: native equals reference")
    print(consistentee_ext.backend_report())


if __name__ == "__main__":
    main()
