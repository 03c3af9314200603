"""Answers that combine the layers passed, on trained checkpoints.

A row that leaves at layer l may answer by the layers 1 to l together: by the mean of their
log-probabilities; by the mean of their probabilities, weighted by confidence (BEEM); or by learnt
weights a layer (Zero Time Waste), fitted on dev. Accuracy on test at equal layer ratios; rows leave
by the policies, or by the confidence of the answer itself.

    python experiments/combinations.py CHECKPOINT... --data DIR
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import AutoTokenizer, DataCollatorWithPadding

from consistentee.data.encode import encode
from consistentee.data.tables import load_splits
from consistentee.evaluation.comparison import RATIOS
from consistentee.evaluation.evaluate import load_model
from consistentee.measures.curves import threshold_curve
from consistentee.measures.exit_scores import exit_scores
from consistentee.measures.hardness import correct_layers
from consistentee.measures.layer_outputs import exit_outputs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("checkpoints", type=Path, nargs="+")
    parser.add_argument("--data", type=Path, required=True)
    options = parser.parse_args()
    splits = load_splits([options.data])
    for folder in options.checkpoints:
        model: Any = load_model(folder)
        tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        names = [model.config.id2label[label] for label in range(model.num_labels)]
        found = {}
        for split in ("dev", "test" if "test" in splits else "dev"):
            rows = encode(splits[split], tokenizer, model.max_length, names)
            output = exit_outputs(model, rows, DataCollatorWithPadding(tokenizer))
            found[split] = (output, torch.tensor(rows["labels"]))
        dev, dev_labels = found["dev"]
        output, labels = found.get("test", found["dev"])
        dev_log_p = dev.exit_logits.log_softmax(dim=-1)
        square = torch.ones(dev_log_p.shape[1], dev_log_p.shape[1])
        policy = exit_scores("policy", output.exit_logits, output.policy_logits)
        combinations: dict[str, Callable[[Tensor], Tensor]] = {
            "the layer alone": lambda logits: logits,
            "mean": by_mean,
            "weighted by confidence": by_confidence,
            "learnt": learn(dev_log_p, dev_labels, square.tril()),
            "learnt, of the layer alone": learn(dev_log_p, dev_labels, torch.eye(len(square))),
        }
        print(folder)
        for name, combine in combinations.items():
            logits = combine(output.exit_logits.log_softmax(dim=-1))
            correct = correct_layers(logits, labels)
            layers = " ".join(f"{100 * a:.2f}" for a in correct.double().mean(dim=0).tolist())
            confidence = exit_scores("confidence", logits, output.policy_logits)
            figures = [
                " ".join(
                    f"{100 * threshold_curve(scores, correct).at_ratio(r):.2f}" for r in RATIOS
                )
                for scores in (policy, confidence)
            ]
            print(f"{name:<26} {layers} | {' | '.join(figures)}", flush=True)


def by_mean(log_p: Tensor) -> Tensor:
    """The mean of the log-probabilities of the layers so far, ``[N, L, C]``."""
    return log_p.cumsum(dim=1) / torch.arange(1, log_p.shape[1] + 1)[:, None]


def by_confidence(log_p: Tensor) -> Tensor:
    """The logarithm of the mean of their probabilities, weighted by the larger one of each."""
    p = log_p.exp()
    weights = p.amax(dim=-1, keepdim=True)
    return ((weights * p).cumsum(dim=1) / weights.cumsum(dim=1)).log()


def learn(log_p: Tensor, labels: Tensor, mask: Tensor) -> Callable[[Tensor], Tensor]:
    """Weights of the layers in `mask` and a bias a class, for each layer, by cross-entropy."""
    layers, classes = log_p.shape[1:]
    weights = nn.Parameter(torch.eye(layers))
    biases = nn.Parameter(torch.zeros(layers, classes))

    def combine(given: Tensor) -> Tensor:
        return torch.einsum("kl,nlc->nkc", (weights * mask).clamp(min=0.0), given) + biases

    optimizer = torch.optim.LBFGS([weights, biases], max_iter=200)

    def closure() -> Tensor:
        optimizer.zero_grad()
        logits = combine(log_p)
        loss = nn.functional.cross_entropy(
            logits.flatten(0, 1), labels[:, None].expand(-1, layers).flatten()
        )
        penalty = 1e-3 * ((weights - torch.eye(layers)).square().sum() + biases.square().sum())
        cast(Any, loss + penalty).backward()
        return loss

    optimizer.step(cast(Any, closure))
    return lambda given: combine(given).detach()


if __name__ == "__main__":
    main()
