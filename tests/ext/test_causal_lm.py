"""Causal language models that answer yes or no, as classifiers, against their own logits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.family_cases import DECODER, FIELDS, VOCABULARY, blown_up
from transformers import AutoConfig, AutoModelForCausalLM

from consistentee_ext import FastEarlyExitEncoder, classifier_from_causal_lm

YES, NO = 11, 42
KINDS: dict[str, dict[str, Any]] = {
    "gemma": DECODER | {"head_dim": 16},
    "llama": DECODER | {"attention_bias": True},
    "olmo2": DECODER,
    "phi": DECODER,  # its head has a bias
    "qwen3": DECODER | {"head_dim": 16, "tie_word_embeddings": True},
}


def language_model(kind: str, fields: dict[str, Any]) -> Any:
    config = AutoConfig.for_model(kind, **(FIELDS | fields))
    return blown_up(AutoModelForCausalLM.from_config(config, attn_implementation="eager"), seed=0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("side", ["left", "right"])
def test_scores_are_the_log_odds_of_two_tokens(kind: str, side: str, backend: str) -> None:
    model = language_model(kind, KINDS[kind])
    lengths = [5, 1, 17, 9]
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randint(2, VOCABULARY, (n,), generator=generator) for n in lengths]
    with torch.no_grad():
        logits = torch.stack([model(row[None]).logits[0, -1] for row in rows])
    expected = logits[:, [YES]] - logits[:, [NO]]
    ids = torch.ones(4, 17, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for number, row in enumerate(rows):
        place = slice(17 - len(row), 17) if side == "left" else slice(len(row))
        ids[number, place], mask[number, place] = row, 1
    classifier = classifier_from_causal_lm(model, YES, NO)
    found = FastEarlyExitEncoder(classifier, backend=backend)(ids, mask).logits
    assert (found - expected).abs().max() <= 2e-5 * logits.abs().max()
    pair = logits[:, [NO, YES]].softmax(dim=-1)[:, 1]
    torch.testing.assert_close(found.sigmoid()[:, 0], pair, atol=1e-4, rtol=1e-4)


def test_the_model_stays_as_it_is() -> None:
    model = language_model("qwen3", KINDS["qwen3"])
    labels = model.config.num_labels
    classifier: Any = classifier_from_causal_lm(model, YES, NO)
    assert model.config.num_labels == labels
    assert classifier.config.num_labels == classifier.num_labels == 1
    assert classifier.model is model.model


def test_what_has_no_such_score_is_refused() -> None:
    capped = language_model("gemma2", DECODER | {"final_logit_softcapping": 1.0})
    with pytest.raises(ValueError, match="model: expected logits that are a product of the last"):
        classifier_from_causal_lm(capped, YES, NO)
    model = language_model("llama", DECODER)
    for wrong in (model.model, torch.nn.Linear(2, 2)):
        kind = type(wrong).__name__
        with pytest.raises(ValueError, match=f"model: expected a causal language .* got {kind}"):
            classifier_from_causal_lm(wrong, YES, NO)
    with pytest.raises(ValueError, match="false_token_id: expected an id below 60, got 60"):
        classifier_from_causal_lm(model, YES, 60)
    with pytest.raises(ValueError, match="true_token_id: expected an id below 60, got -1"):
        classifier_from_causal_lm(model, -1, NO)
