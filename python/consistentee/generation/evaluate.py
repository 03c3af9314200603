"""What a decoder's exits save, and what they change.

The mean exit layer is over the tokens that may leave: the first token of an answer comes with the
prompt, at full depth.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import chain
from statistics import fmean
from typing import Any, NamedTuple

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

from consistentee.atomic_files import Json
from consistentee.generation.answers import FULL_DEPTH, generate_all
from consistentee.generation.data import answered_rows, encode_prompts
from consistentee.generation.measure import cost_ratio
from consistentee.generation.rouge import rouge
from consistentee.generation.rules import compare_rules, forced_figures
from consistentee_ext.checkpoint import load_tokenizer
from consistentee_ext.generation.configuration import ConsistentEECausalLMConfig
from consistentee_ext.generation.modeling import ConsistentEEForCausalLM
from consistentee_ext.generation.reference import Generated
from consistentee_ext.generation.rules import PolicyRule
from consistentee_ext.source import Source

MAX_NEW_TOKENS = 64


class GeneratorEvaluation(NamedTuple):
    """The figures of a decoder on prompts, and the answers they are about.

    Attributes:
        metrics: see `evaluate_generator`.
        exits: answers made with exits.
        full: answers at full depth.
    """

    metrics: Json
    exits: Generated
    full: Generated


def load_generator(
    checkpoint: str | os.PathLike[str],
) -> tuple[ConsistentEEForCausalLM, PreTrainedTokenizerBase]:
    """A trained decoder in float32, in evaluation mode, and its tokenizer.

    Raises:
        ValueError: weights are missing or unknown.
        OSError: there is no such checkpoint.
    """
    source = Source(checkpoint).checked()
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        checkpoint,
        dtype=torch.float32,
        use_safetensors=True,
        trust_remote_code=False,
        output_loading_info=True,
    )
    model, info = loaded
    if not isinstance(model, ConsistentEEForCausalLM):
        raise ValueError(
            f"{checkpoint}: expected a checkpoint of model_type "
            f"{ConsistentEECausalLMConfig.model_type}, got {model.config.model_type!r}"
        )
    misfits = sorted({*info["missing_keys"], *info["unexpected_keys"]})
    if misfits:
        raise ValueError(
            f"{checkpoint}: expected the weights that config.json describes; missing or unknown: "
            f"{', '.join(misfits[:3])}"
        )
    model.eval()
    return model, load_tokenizer(source)


def evaluate_generator(
    model: ConsistentEEForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    rows: Dataset,
    threshold: float | None = None,
    max_new_tokens: int | None = None,
    rules: bool = False,
) -> GeneratorEvaluation:
    """Measure a decoder on prompts, beside itself at full depth.

    Args:
        model: from `load_generator`.
        tokenizer: the same.
        rows: of `consistentee.generation.data.load_rows`.
        threshold: of the policy; default the model's.
        max_new_tokens: of each answer; default `MAX_NEW_TOKENS`.
        rules: measure the criteria that exits are compared with too, see
            `consistentee.generation.rules.compare_rules`.

    Returns:
        The answers, and as ``metrics``

        - ``rows``, ``threshold``, ``num_layers``, ``max_new_tokens``, ``head_layers``;
        - ``teacher_forced``: the full model's greedy answers, read as they stand: ``agreement``,
          the share of tokens that exits predict too, with ``mean_exit_layer``, ``cost_ratio``;
        - ``free_running``: answers made with exits: ``identical``, the share that are the full
          model's; ``tokens_before_difference``, the mean over answers; ``rouge``, of these answers
          against the full model's; ``mean_exit_layer``, ``cost_ratio``;
        - where rows have completions ``rouge`` and ``full_depth_rouge`` against these;
        - with `rules` the result of `compare_rules`, as ``rules``.

    Raises:
        ValueError: a prompt is too long, or an argument is outside its range.
    """
    rule = PolicyRule(model.config.threshold if threshold is None else threshold)
    max_new_tokens = MAX_NEW_TOKENS if max_new_tokens is None else max_new_tokens
    if max_new_tokens < 2:
        raise ValueError(f"max_new_tokens: expected at least 2, got {max_new_tokens}")
    longest = model.config.backbone.max_position_embeddings - max_new_tokens
    prompts = encode_prompts("data", rows, tokenizer, longest)
    full = generate_all(model, prompts, max_new_tokens, FULL_DEPTH, "answers at full depth")
    exits = generate_all(model, prompts, max_new_tokens, rule, "answers with exits")
    answers = answered_rows("data", prompts, full.tokens)
    texts, full_texts = (
        tokenizer.batch_decode(found.tokens, skip_special_tokens=True) for found in (exits, full)
    )
    found: Json = {
        "rows": len(rows),
        "threshold": rule.threshold,
        "num_layers": model.config.num_layers,
        "max_new_tokens": max_new_tokens,
        "head_layers": model.trunk.head_layers,
        "teacher_forced": forced_figures(model, answers, rule),
        "free_running": {
            **_same_text(exits.tokens, full.tokens),
            "rouge": _means(rouge(texts, full_texts)),
            **free_cost(model, exits),
        },
    }
    if rules:
        found["rules"] = compare_rules(model, answers, max_new_tokens)
    if "completion" in rows.column_names:
        references = rows["completion"][:]
        found["rouge"] = _means(rouge(texts, references))
        found["full_depth_rouge"] = _means(rouge(full_texts, references))
    return GeneratorEvaluation(found, exits, full)


def free_cost(model: ConsistentEEForCausalLM, found: Generated) -> Json:
    """``mean_exit_layer`` and ``cost_ratio``; full depth's where no token could leave."""
    layers = [*chain(*found.exit_layers)] or [model.config.num_layers]
    mean = fmean(layers)
    heads = fmean([*chain(*found.heads)] or [1])
    return {"mean_exit_layer": mean, "cost_ratio": cost_ratio(model, mean, heads)}


def _same_text(tokens: Sequence[Sequence[int]], full: Sequence[Sequence[int]]) -> Json:
    pairs = list(zip(tokens, full, strict=True))
    return {
        "identical": fmean(a == b for a, b in pairs),
        "tokens_before_difference": fmean(_common(a, b) for a, b in pairs),
    }


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    """The number of tokens before the first that differs."""
    differs = (place for place, (x, y) in enumerate(zip(a, b, strict=False)) if x != y)
    return next(differs, min(len(a), len(b)))


def _means(scores: dict[str, list[float]]) -> Json:
    return {name: fmean(values) for name, values in scores.items()}
