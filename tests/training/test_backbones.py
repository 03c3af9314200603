"""Training on encoders of other families than BERT, and the engine on what it leaves. Gemma 2 is
one of no family here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.letters import SETTINGS, WORDS, letters_on, tokenizer
from transformers import AutoConfig, AutoModel

from consistentee.evaluation.evaluate import load_model
from consistentee.model.modeling import ConsistentEEForSequenceClassification
from consistentee.training.train import train
from consistentee_ext import FastEarlyExitEncoder

SIZES: dict[str, Any] = {
    "vocab_size": len(WORDS),
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 20,
    "pad_token_id": 0,
}
MODERN = {"bos_token_id": 2, "eos_token_id": 3, "cls_token_id": 2, "sep_token_id": 3}
DECODER = {"num_key_value_heads": 1, "bos_token_id": 2, "eos_token_id": 3}
FAMILIES: dict[str, dict[str, Any]] = {
    "albert": {"embedding_size": 16, "inner_group_num": 1},
    "camembert": {},
    "data2vec-text": {},
    "deberta-v2": {"relative_attention": True, "pos_att_type": ["p2c", "c2p"]},
    "distilbert": {},
    "electra": {"embedding_size": 16},
    "ernie": {},
    "gte": {"type_vocab_size": 0},
    "gemma2": DECODER | {"head_dim": 16},
    "llama": DECODER,
    "modernbert": MODERN,
    "mpnet": {},
    "roberta": {},
    "xlm-roberta": {},
}
CAUSAL = ("gemma2", "llama")
WITHOUT_SEGMENTS = ("distilbert", "modernbert", *CAUSAL)  # in their tokenizers


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_is_trained_and_run(family: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    backbone = tmp_path / "backbone"
    config = AutoConfig.for_model(family, **(SIZES | FAMILIES[family]))
    AutoModel.from_config(config).save_pretrained(backbone)
    _, rows, dev = letters_on(backbone)
    if family in WITHOUT_SEGMENTS:
        rows, dev = (table.remove_columns("token_type_ids") for table in (rows, dev))
    output = tmp_path / "model"
    pooling: Any = {"pooling": "last"} if family in CAUSAL else {}
    train(backbone, rows, dev, output, tokenizer(), SETTINGS, **pooling)

    batch = {name: dev[name] for name in ("input_ids", "attention_mask")}
    longest = max(map(len, batch["input_ids"]))
    padded = {
        name: torch.tensor([row + [0] * (longest - len(row)) for row in column])
        for name, column in batch.items()
    }
    with torch.no_grad():
        expected = load_model(output).eval()(**padded).logits
    encoder = FastEarlyExitEncoder.from_pretrained(output, threshold=1.0)
    found = encoder(**padded)
    assert found.exit_layers.tolist() == [2] * len(dev)
    torch.testing.assert_close(found.logits, expected, atol=1e-5, rtol=1e-5)


def test_an_encoder_that_cannot_be_cut_says_so(tmp_path: Path) -> None:
    torch.manual_seed(0)
    fields = SIZES | {"mask_token_id": 4, "position_embedding_type": "rotary"}
    AutoModel.from_config(AutoConfig.for_model("esm", **fields)).save_pretrained(tmp_path)
    build = ConsistentEEForSequenceClassification.from_backbone
    assert len(build(tmp_path, num_labels=2).heads) == 2
    expected = r"^num_layers: expected None, as contact_head\.\S+ of EsmModel has a size .*, got 1$"
    with pytest.raises(ValueError, match=expected):
        build(tmp_path, num_layers=1, num_labels=2)
