"""Exits for a classifier that is trained already, from texts without labels.

Trunk and last head stay as they are, so at full depth the model gives the answers it gave before.

1. ``heads``: the heads of the earlier layers learn the full model's logits.
2. ``policies``: each policy learns the probability that its layer's answer is the full model's.
   It learns from what heads answer to texts that they were not trained on: for each fold of the
   texts there are heads that were trained on the others (``heads.1of4`` and so on).
3. On rows held out for it the threshold is found at which at most a share of the answers is another
   one, see `consistentee.measures.calibration.threshold_for_agreement`.

With `AddExitsSettings.tune_trunk` the phase ``heads`` is followed by ``trunk``, in which the trunk
moves too, by the same targets, so that its lower layers know more. Policies then learn from rows
that neither was trained on. The full model is the tuned one.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import set_seed

from consistentee.atomic_files import Json
from consistentee.data.encode import encode_for
from consistentee.data.fingerprint import HASHED, fingerprint
from consistentee.measures.calibration import rows_to_agree
from consistentee.model.from_classifier import from_classifier
from consistentee.model.modeling import max_length_of
from consistentee.training.addition import FOLDS, Addition, Parts
from consistentee.training.run_folder import RunFolder
from consistentee.training.settings import AddExitsSettings
from consistentee_ext.checkpoint import load_checkpoint, load_tokenizer
from consistentee_ext.source import Source

MIN_CALIBRATION_ROWS = 500


def add_exits(
    checkpoint: str | os.PathLike[str],
    table: Dataset,
    output: str | os.PathLike[str],
    settings: AddExitsSettings | None = None,
    max_length: int | None = None,
) -> Json:
    """Add exits to a classifier. Called again after a kill, go on where it was.

    Args:
        checkpoint: a folder or hub name that `FastEarlyExitEncoder.from_pretrained` takes, without
            exits.
        table: texts like those to be classified, of `consistentee.data.tables.load_texts`, or with
            labels of `load_table`, which are then learned from as well. The guarantee is about
            texts like these: not about others where the classifier was trained on these.
        output: the folder to make: a ConsistentEE checkpoint with its tokenizer and
            training_log.json. It appears at the end, complete.
        settings: how to do it.
        max_length: texts are cut to so many tokens; default what tokenizer and model take.

    Returns:
        The content of training_log.json: ``run``, all that determines the result; ``phases``, with
        the share of answers in which each layer agrees with the last, on rows it has not seen; and
        ``calibration``, see `consistentee.training.addition.Addition.run_all`.

    Raises:
        ValueError: another model than a classifier without exits, too few rows, a setting outside
            its range, or an output that cannot be written or holds something else.
    """
    settings = settings or AddExitsSettings()
    parts = split_rows(len(table), settings)
    source = Source(str(checkpoint)).checked()
    classifier, tokenizer = load_checkpoint(source), load_tokenizer(source)
    dtype = next(classifier.parameters()).dtype
    set_seed(settings.seed)
    model = from_classifier(classifier.float(), settings.pooling, max_length)
    _check_last_token(model.config, tokenizer)
    longest = min(max_length_of(model.backbone), tokenizer.model_max_length)
    if max_length is not None and max_length > longest:
        raise ValueError(
            f"max_length: expected at most {longest}, what model and tokenizer take, "
            f"got {max_length}"
        )
    data = encode_for(model.config, table, tokenizer, max_length or longest)
    identity = {
        "model": _fingerprint(classifier),
        "settings": asdict(settings),
        "max_length": max_length,
        "data": fingerprint(data, HASHED),
    }
    run = RunFolder(output, identity)
    return run.log() or Addition(run, model, dtype, data, tokenizer, settings, parts).run_all()


def split_rows(rows: int, settings: AddExitsSettings) -> Parts:
    """Two parts of so many rows, at random.

    Raises:
        ValueError: too few rows for the guarantee.
    """
    held_out = max(round(settings.calibration_share * rows), min(MIN_CALIBRATION_ROWS, rows // 2))
    needed = rows_to_agree(settings.max_disagreement, settings.confidence)
    if held_out < needed or rows - held_out < FOLDS:
        raise ValueError(
            f"data: expected at least {needed} rows held out, to prove a disagreement of at most "
            f"{settings.max_disagreement} with confidence {settings.confidence}, and others to "
            f"learn from, got {rows} rows, of which {held_out} would be held out"
        )
    order = np.random.default_rng(settings.seed).permutation(rows)
    return Parts(order[held_out:], order[:held_out])


def _check_last_token(config: Any, tokenizer: Any) -> None:
    """Raise ValueError where the tokenizer ends rows with its padding token.

    A causal classifier reads the last token that is none, an exit the last one there is.
    """
    if config.last_pooling == "last" and tokenizer("a").input_ids[-1] == tokenizer.pad_token_id:
        raise ValueError(
            "model: expected a tokenizer that does not end texts with the padding token "
            f"{tokenizer.pad_token!r}, as this classifier reads the token before it"
        )


def _fingerprint(model: Any) -> str:
    """A hash of a model's configuration and weights."""
    digest = hashlib.sha256(model.config.to_json_string(use_diff=False).encode())
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()
