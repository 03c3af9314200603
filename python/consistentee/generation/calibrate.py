"""Finds a decoder's exit threshold, with a guarantee of how much its texts change."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from statistics import fmean

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray

from consistentee.atomic_files import write_json
from consistentee.evaluation.checkpoints import local_config
from consistentee.generation.answers import FULL_DEPTH, generate_all
from consistentee.generation.data import answered_rows, encode_prompts
from consistentee.generation.evaluate import MAX_NEW_TOKENS, load_generator
from consistentee.generation.measure import cost_ratio, teacher_forced
from consistentee.generation.rouge import rouge
from consistentee.measures.calibration import threshold_for_mean_loss
from consistentee_ext.generation.rules import PolicyRule

MIN_TEXTS = 300


@dataclass(frozen=True)
class GeneratorCalibration:
    """A threshold, and the results at it on the prompts it was found on.

    Attributes:
        threshold: as written into the checkpoint.
        loss: mean over texts.
        mean_exit_layer: over the tokens that may leave.
        cost_ratio: see `consistentee.generation.measure.cost_ratio`.
    """

    threshold: float
    loss: float
    mean_exit_layer: float
    cost_ratio: float


def calibrate_generator(
    checkpoint: str | os.PathLike[str],
    rows: Dataset,
    *,
    max_token_change: float | None = None,
    max_rouge_loss: float | None = None,
    confidence: float = 0.95,
    max_new_tokens: int | None = None,
) -> GeneratorCalibration:
    """Find the threshold for one goal and write it into the checkpoint's config.json.

    The guarantee is about the mean loss of texts like these, see
    `consistentee.measures.calibration.threshold_for_mean_loss`. It needs no references.

    Args:
        checkpoint: a local folder.
        rows: at least `MIN_TEXTS` prompts that the model was not trained on, of
            `consistentee.generation.data.load_rows`.
        max_token_change: goal: at most this share of a text's tokens changes, where the full
            model's text is read as it stands.
        max_rouge_loss: goal: ``1 - ROUGE-L`` of a text to the full model's, at most.
        confidence: of the guarantee.
        max_new_tokens: of each answer; default `consistentee.generation.evaluate.MAX_NEW_TOKENS`.

    Raises:
        ValueError: no goal or both, too few prompts, or no such checkpoint.
    """
    config_file = local_config(checkpoint)
    if (max_token_change is None) == (max_rouge_loss is None):
        given = "neither" if max_token_change is None else "both"
        raise ValueError(
            f"calibrate: expected one of max_token_change and max_rouge_loss, got {given}"
        )
    if len(rows) < MIN_TEXTS:
        raise ValueError(f"data: expected at least {MIN_TEXTS} prompts, got {len(rows)}")
    model, tokenizer = load_generator(checkpoint)
    most = MAX_NEW_TOKENS if max_new_tokens is None else max_new_tokens
    longest = model.config.backbone.max_position_embeddings - most
    prompts = encode_prompts("data", rows, tokenizer, longest)
    full = generate_all(model, prompts, most, FULL_DEPTH, "answers at full depth").tokens
    mean_layers: dict[float, float] = {1.0: float(model.config.num_layers)}
    mean_losses: dict[float, float] = {1.0: 0.0}

    def token_change(threshold: float) -> NDArray[np.float64]:
        forced = teacher_forced(model, answered_rows("data", prompts, full), PolicyRule(threshold))
        mean_layers[threshold] = forced.exit_layers.double().mean().item()
        changed = (~forced.right).double().split(forced.tokens)
        shares = iter([text.mean().item() for text in changed])
        # A text of one token has none that could change.
        return np.array([next(shares) if len(answer) > 1 else 0.0 for answer in full])

    def rouge_loss(threshold: float) -> NDArray[np.float64]:
        found = generate_all(
            model, prompts, most, PolicyRule(threshold), f"answers at threshold {threshold:.3f}"
        )
        mean_layers[threshold] = fmean(chain(*found.exit_layers))
        return _rouge_losses(tokenizer.batch_decode, found.tokens, full)

    losses = token_change if max_rouge_loss is None else rouge_loss

    def kept(threshold: float) -> NDArray[np.float64]:
        found = losses(threshold)
        mean_losses[threshold] = float(found.mean())
        return found

    goal = max_token_change if max_rouge_loss is None else max_rouge_loss
    assert goal is not None  # one of them is given
    threshold = threshold_for_mean_loss(kept, goal, confidence)
    written = json.loads(config_file.read_text(encoding="utf-8"))
    write_json(config_file, {**written, "threshold": threshold})
    mean = mean_layers[threshold]
    return GeneratorCalibration(threshold, mean_losses[threshold], mean, cost_ratio(model, mean))


def _rouge_losses(
    decode: Callable[..., list[str]], tokens: Sequence[list[int]], full: Sequence[list[int]]
) -> NDArray[np.float64]:
    """``1 - ROUGE-L`` of each text; 0 where it is the same, though it may have no words."""
    texts, references = (decode(ids, skip_special_tokens=True) for ids in (tokens, full))
    scores = np.array(rouge(texts, references)["rougeL"])
    same = np.array([a == b for a, b in zip(tokens, full, strict=True)])
    return np.where(same, 0.0, 1.0 - scores / 100.0)
