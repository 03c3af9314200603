"""What weights and activations of 8 bits change: answers, exits and accuracy, beside float32.

    python experiments/int8.py CHECKPOINT --data test.tsv

The rows run with the checkpoint's exits and at full depth. `--levels 63` is what processors without
VNNI do: activations of 7 bits.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from transformers import AutoTokenizer

from consistentee.data.encode import encode
from consistentee.data.labels import class_names
from consistentee.data.tables import load_table
from consistentee.evaluation.evaluate import load_model, padded_batches
from consistentee_ext import EarlyExitOutput, FastEarlyExitEncoder
from consistentee_ext.ops import onednn_int8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--levels", type=int, choices=onednn_int8.LEVELS, nargs="+")
    parser.add_argument("--threshold", type=float, help="default the checkpoint's")
    options = parser.parse_args()
    model = load_model(options.checkpoint)
    names = class_names(model.config)
    tokenizer = AutoTokenizer.from_pretrained(options.checkpoint)
    table = load_table(options.data)
    rows = encode(table, tokenizer, model.config.max_tokens or 512, names)
    batches = padded_batches(rows, tokenizer, 32)
    labels = torch.tensor(rows["labels"])

    @torch.inference_mode()
    def run(dtype: torch.dtype, weights: str | None, full_depth: bool) -> EarlyExitOutput:
        threshold = 1.0 if full_depth else options.threshold
        encoder = FastEarlyExitEncoder(model, dtype=dtype, weights=weights, threshold=threshold)
        parts = [encoder(**batch) for batch in batches]
        return EarlyExitOutput(
            logits=torch.cat([part.logits for part in parts]),
            exit_layers=torch.cat([part.exit_layers for part in parts]),
        )

    print(f"{options.checkpoint}, {options.data}: {len(labels)} rows, {len(names)} classes")
    print("| weights | rest | full depth | with exits | layer ratio | answers | exits changed |")
    print("|---|---|---|---|---|---|---|")
    exact = {full: run(torch.float32, None, full) for full in (True, False)}
    formats: list[tuple[int | None, torch.dtype]] = [(None, torch.float32), (None, torch.bfloat16)]
    usable, _ = onednn_int8.activation_levels()
    for levels in options.levels or [usable]:
        formats += [(levels, dtype) for dtype in onednn_int8.dtypes()]
    for levels, dtype in formats:
        if levels is not None:
            _use_levels(levels)
        weights = None if levels is None else "int8"
        found = {full: run(dtype, weights, full) for full in (True, False)}
        accuracy = {
            full: (output.logits.argmax(dim=1) == labels).double().mean().item()
            for full, output in found.items()
        }
        exits, exact_exits = found[False], exact[False]
        answers = (exits.logits.argmax(dim=1) != exact_exits.logits.argmax(dim=1)).double().mean()
        moved = (exits.exit_layers != exact_exits.exit_layers).double().mean()
        ratio = model.config.backbone.num_hidden_layers / exits.exit_layers.double().mean()
        name = str(dtype).removeprefix("torch.")
        bits = "" if levels is None else f", activations of {levels.bit_length() + 1} bits"
        print(
            f"| {weights or name}{bits} | {name} | {accuracy[True]:.2%} | {accuracy[False]:.2%} "
            f"| {ratio:.3f} | {answers:.2%} | {moved:.2%} |",
            flush=True,
        )


def _use_levels(levels: int) -> None:
    """Activations of at most this integer from now on, whatever the processor has."""
    known = onednn_int8.activation_levels()
    onednn_int8.activation_levels = lambda: (levels, known[1])  # type: ignore[assignment]


if __name__ == "__main__":
    main()
