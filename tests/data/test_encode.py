"""From a table to token ids and labels."""

from __future__ import annotations

import pytest
from datasets import Dataset
from support.files import write
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from consistentee.data.encode import encode
from consistentee.data.labels import numbers
from consistentee.data.tables import load_splits, load_table

VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "b", "c", "d", "e"]


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    ids = {word: index for index, word in enumerate(VOCABULARY)}
    backend = Tokenizer(models.WordLevel(ids, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="[PAD]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )


def test_encode_single_sentences(tokenizer):
    table = Dataset.from_dict({"sentence1": ["a b c d", "e"], "label": ["no", "yes"]})
    assert encode(table, tokenizer, max_length=5, labels=["yes", "no"]).to_dict() == {
        "input_ids": [[2, 4, 5, 6, 3], [2, 8, 3]],
        "token_type_ids": [[0] * 5, [0] * 3],
        "attention_mask": [[1] * 5, [1] * 3],
        "length": [5, 3],
        "labels": [1, 0],
    }


def test_encode_pairs_cuts_the_longer_one(tokenizer):
    table = Dataset.from_dict({"sentence1": ["a b c d"], "sentence2": ["e"], "label": ["x"]})
    assert encode(table, tokenizer, max_length=6).to_dict() == {
        "input_ids": [[2, 4, 5, 3, 8, 3]],
        "token_type_ids": [[0, 0, 0, 0, 1, 1]],
        "attention_mask": [[1] * 6],
        "length": [6],
    }


def test_encode_keeps_the_order_over_batches(tokenizer):
    words = [VOCABULARY[4 + row % 5] for row in range(2_345)]
    encoded = encode(Dataset.from_dict({"sentence1": words}), tokenizer, max_length=8)
    assert encoded["input_ids"][:] == [[2, 4 + row % 5, 3] for row in range(2_345)]


def test_encode_refuses(tokenizer):
    table = Dataset.from_dict({"sentence1": ["a"], "label": ["x"]})
    with pytest.raises(ValueError, match=r"max_length: expected above 2, .* got 2"):
        encode(table, tokenizer, max_length=2)
    with pytest.raises(ValueError, match=r"labels: expected every label .* got none for \['x'\]"):
        encode(table, tokenizer, max_length=8, labels=["y"])


def test_labels_of_a_regression_are_numbers(tmp_path, tokenizer):
    path = write(
        tmp_path / "train.jsonl", '{"text": "a b", "label": 2.5}\n{"text": "c", "label": 4}\n'
    )
    table = load_table(path, problem_type="regression")
    assert numbers(table) == [2.5, 4.0]
    tsv = write(tmp_path / "dev.tsv", "text\tlabel\na\t1\nb\t0.25\n")
    splits = load_splits(
        [path, tsv], problem_type="regression"
    )  # a number unseen in training is no mistake
    data = encode(splits["dev"], tokenizer, 16, problem_type="regression")
    assert data["labels"] == [1.0, 0.25]
    with pytest.raises(ValueError, match=r"expected an integer or a string in 'label', got float"):
        load_table(path)
    for word in ("much", "nan", "inf"):
        bad = write(tmp_path / "bad.tsv", f"text\tlabel\na\t1\nb\t{word}\n")
        message = rf"^label: row 2: expected a finite number, got '{word}'$"
        with pytest.raises(ValueError, match=message):
            numbers(load_table(bad, problem_type="regression"))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("t.tsv", "text\tlabels\na\tx|z\nb\t\nc\ty\n"),
        ("t.jsonl", '{"text": "a", "labels": ["x", "z"]}\n{"text": "b", "labels": []}\n'
                    '{"text": "c", "labels": "y"}'),
        ("u.jsonl", '{"text": "a", "labels": ["x", "z"]}\n{"text": "b", "labels": []}\n'
                    '{"text": "c", "labels": ["y"]}'),
    ],
)  # fmt: skip
def test_sets_of_labels_are_rows_of_zeros_and_ones(tmp_path, tokenizer, name, content):
    table = load_table(write(tmp_path / name, content), problem_type="multi_label_classification")
    assert table["label"][:] == [["x", "z"], [], ["y"]]
    data = encode(table, tokenizer, 8, ["x", "y", "z"], "multi_label_classification")
    assert data["labels"][:] == [[1.0, 0.0, 1.0], [0.0] * 3, [0.0, 1.0, 0.0]]
    with pytest.raises(ValueError, match=r"every label of the table, got none for \['z'\]"):
        encode(table, tokenizer, 8, ["x", "y"], "multi_label_classification")
    classes = Dataset.from_dict({"sentence1": ["a", "b"], "label": ["1", "10"]})
    with pytest.raises(ValueError, match=r"^label: .* of multi_label_classification, got '1'$"):
        encode(classes, tokenizer, 8, ["1", "10"], "multi_label_classification")
    with pytest.raises(
        ValueError,
        match=r"^label: expected those of single_label_classification, got \['x', 'z'\]$",
    ):
        encode(table, tokenizer, 8, ["x", "y", "z"])
