"""From text to token ids and class numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from datasets import Dataset, concatenate_datasets
from transformers import PreTrainedTokenizerBase

from consistentee.data.labels import label_names, numbers
from consistentee_ext.configuration import ConsistentEEConfig, class_names
from consistentee_ext.names import MULTI_LABEL, REGRESSION, SINGLE_LABEL

BATCH_ROWS = 1000


def encode_for(
    config: ConsistentEEConfig, table: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int
) -> Dataset:
    """Tokenize a table, with its labels if it has any, for a model of this configuration."""
    if "label" not in table.column_names:
        return encode(table, tokenizer, max_length)
    names = None if config.regression else class_names(config)
    return encode(table, tokenizer, max_length, names, config.answer_type)


def encode(
    table: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    labels: Sequence[str] | None = None,
    problem_type: str | None = None,
) -> Dataset:
    """Tokenize a table, without padding; rows are truncated to ``max_length`` tokens.

    A pair is truncated at the end of its longer sentence.

    Args:
        table: as `load_table` returns it.
        tokenizer: returns ``input_ids``, ``attention_mask`` and, if its model reads them,
            ``token_type_ids``.
        max_length: the longest row, special tokens included.
        labels: the label of each class, in order; None leaves the labels out.
        problem_type: in regression the labels are numbers, as `numbers` reads them; in multi-label
            classification sets.

    Returns:
        The tokenizer's columns, ``length`` in tokens, and ``labels``: class indices, numbers, or
        of a set C numbers, 1.0 for a label that it has, else 0.0.

    Raises:
        ValueError: ``max_length`` leaves no room for text, or a label of the table is not in
            ``labels`` or not a number.
    """
    pairs = "sentence2" in table.column_names
    special = tokenizer.num_special_tokens_to_add(pair=pairs)
    if max_length <= special:
        raise ValueError(
            f"max_length: expected above {special}, the special tokens of a row, got {max_length}"
        )
    if labels is not None:
        unknown = [label for label in label_names(table) if label not in labels]
        if unknown:
            raise ValueError(f"labels: expected every label of the table, got none for {unknown}")
        if (problem_type == MULTI_LABEL) == isinstance(table["label"][0], str):
            kind = problem_type or SINGLE_LABEL
            raise ValueError(f"label: expected those of {kind}, got {table['label'][0]!r}")

    def target(label: Any) -> int | list[float]:
        assert labels is not None
        if problem_type == MULTI_LABEL:
            return [float(name in label) for name in labels]
        return labels.index(label)

    def encode_batch(batch: dict[str, list[Any]]) -> Dataset:
        encoding = tokenizer(
            batch["sentence1"],
            batch["sentence2"] if pairs else None,
            truncation="longest_first",
            max_length=max_length,
        )
        columns = dict(encoding)
        columns["length"] = [len(ids) for ids in encoding["input_ids"]]
        if labels is not None:
            columns["labels"] = [target(label) for label in batch["label"]]
        return Dataset.from_dict(columns)

    encoded = concatenate_datasets([encode_batch(b) for b in table.iter(batch_size=BATCH_ROWS)])
    return encoded.add_column("labels", numbers(table)) if problem_type == REGRESSION else encoded
