"""The page of a decoder."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from datasets import Dataset
from support.decoder_folder import WORDS, tokenizer
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from consistentee.generation.evaluate import GeneratorEvaluation
from consistentee.report.generator_page import Piece, pieces, write_generator_report
from consistentee_ext.generation.reference import Generated

METRICS = {
    "rows": 2,
    "threshold": 0.5,
    "num_layers": 4,
    "teacher_forced": {"agreement": 0.5, "mean_exit_layer": 2.0, "cost_ratio": 1.5},
    "free_running": {
        "identical": 0.25,
        "rouge": {"rougeL": 61.5},
        "mean_exit_layer": 2.5,
        "cost_ratio": 1.375,
    },
}


def ids(text: str) -> list[int]:
    return [WORDS.index(word) for word in text.split()]


def test_the_page_and_its_numbers(tmp_path: Path) -> None:
    exits = Generated([ids("a b c </s>"), ids("d e")], [[1, 3, 4], [2]], [[1, 1, 1], [1]])
    full = Generated([ids("a b d </s>"), ids("d e")], [[4, 4, 4], [4]], [[1, 1, 1], [1]])
    rows = Dataset.from_dict({"prompt": ["say <b>&", "say d"]})
    file = tmp_path / "page.html"
    evaluation = GeneratorEvaluation(METRICS, exits, full)
    write_generator_report(file, "model on file", evaluation, rows, tokenizer())
    assert {path.name for path in tmp_path.iterdir()} == {"page.html", "page.json"}
    assert json.loads((tmp_path / "page.json").read_text()) == METRICS
    page = file.read_text(encoding="utf-8")
    assert "<script" not in page
    assert "http" not in page
    spans = re.findall(r'<span class="e(\d)" title="layer (\d)">([^<]*)</span>', page)
    assert spans == [
        *(("4", "4", "a"), ("1", "1", " b"), ("3", "3", " c")),  # the end is no text
        *(("4", "4", "d"), ("2", "2", " e")),
    ]
    assert "say &lt;b&gt;&amp;" in page
    assert "at full depth: a b d" in page
    assert page.count("the same at full depth") == 1
    for figure in ("50.00%", "25.00%", "61.50", "2.50", "1.38"):
        assert figure in page
    with pytest.raises(ValueError, match=r"expected a name that ends in .html"):
        write_generator_report(tmp_path / "x.pdf", "", evaluation, rows, tokenizer())


def test_tokens_that_share_a_character_are_one_piece() -> None:
    """Of bytes: the letter o, two bytes of one character, the letter k."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    model = Tokenizer(BPE({char: number for number, char in enumerate(alphabet)}, []))
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = decoders.ByteLevel()
    read = PreTrainedTokenizerFast(tokenizer_object=model)
    tokens = read("o\u00e9k")["input_ids"]
    assert len(tokens) == 4
    expected = [Piece("o", 1), Piece("\u00e9", 3), Piece("k", 2)]
    assert pieces(read, tokens, [1, 3, 2, 2]) == expected
