"""An encoder around a model that runs as it is: settings, copies, checkpoints, what it says."""

from __future__ import annotations

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from support.family_cases import VOCABULARY, blown_up, classifier_of
from support.generic_cases import BACKBONES, CASES, classifier, config_of
from transformers import AutoModel

from consistentee.model.modeling import ConsistentEEForSequenceClassification
from consistentee_ext import FastEarlyExitEncoder, backend_report
from consistentee_ext.configuration import ConsistentEEConfig
from consistentee_ext.families import take_last_norm

IDS = torch.randint(2, VOCABULARY, (6, 20), generator=torch.Generator().manual_seed(0))


def with_exits(case: str, **fields: Any) -> Any:
    config = ConsistentEEConfig(config_of(case), num_labels=3, **fields)
    model: Any = blown_up(ConsistentEEForSequenceClassification(config), seed=2)
    model.set_attn_implementation("eager")
    return model


def test_it_says_what_runs() -> None:
    encoder = FastEarlyExitEncoder(classifier("gemma2"), backend="torch")
    wanted = "(gemma2, backend torch, transformers' own layers on packed rows)"
    assert repr(encoder) == f"FastEarlyExitEncoder{wanted}"
    assert wanted in repr(FastEarlyExitEncoder(with_exits("gemma2"), backend="torch"))
    assert "repr(encoder) says which run" in backend_report("cpu")


def test_the_callers_model_stays_as_it_is() -> None:
    model = classifier("gemma2")
    model.config.use_cache = True
    before = model.config.to_dict()
    expected = model(IDS).logits
    encoder = FastEarlyExitEncoder(model, dtype=torch.bfloat16)
    encoder(IDS)
    assert model.config.to_dict() == before
    assert model.config._attn_implementation == "eager"
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in model.modules())
    assert all(p.requires_grad and p.dtype == torch.float32 for p in model.parameters())
    assert torch.equal(model(IDS).logits, expected)
    with torch.no_grad():
        model.score.weight.zero_()
    assert encoder(IDS).logits.abs().max() > 0  # it has weights of its own


def test_a_stream_gives_all_rows_at_once_and_single_rows_have_their_own_thresholds() -> None:
    encoder = FastEarlyExitEncoder(with_exits("gemma2"), threshold=1.0)
    bounds = torch.tensor([1, 3, 2, 1, 3, 2])
    expected = encoder(IDS, row_max_layers=bounds)
    assert torch.equal(expected.exit_layers, bounds)
    ((rows, found),) = encoder.stream(IDS, row_max_layers=bounds)
    assert rows.tolist() == list(range(6))
    assert torch.equal(found.logits, expected.logits)
    assert torch.equal(found.exit_layers, expected.exit_layers)


def test_thresholds_criteria_and_exit_layers() -> None:
    model = with_exits("gemma2")
    with torch.no_grad():
        confidence = model(IDS).exit_logits.softmax(dim=-1).amax(dim=-1)
    encoder = FastEarlyExitEncoder(model, criterion="confidence", threshold=1.0)
    assert encoder(IDS).exit_layers.tolist() == [3] * 6
    encoder.threshold = 1e-6
    assert encoder(IDS).exit_layers.tolist() == [1] * 6  # no row is left for the second layer
    threshold = confidence[:, 0].median().item() + 1e-4
    encoder.threshold = {1: threshold, 2: 1.0}
    early = confidence[:, 0] > threshold
    assert 0 < early.sum() < 6
    output = encoder(IDS)
    assert output.exit_layers.tolist() == torch.where(early, 1, 3).tolist()
    scores = torch.where(early, confidence[:, 0], confidence[:, 2])
    torch.testing.assert_close(output.exit_scores, scores)
    encoder.criterion = "entropy"
    encoder.threshold = 1e-6
    assert encoder(IDS).exit_layers.tolist() == [1] * 6
    second = FastEarlyExitEncoder(model, exit_layers=[2], criterion="entropy", threshold=1e-6)
    assert second(IDS).exit_layers.tolist() == [2] * 6


def test_pairs_of_texts_are_compared() -> None:
    model = with_exits("gemma2", pooling="pair", separator_id=3)
    ids = IDS.clone()
    ids[:4, 7] = 3
    with torch.no_grad():
        exits = model(ids).exit_logits
    for layer in (1, 3):
        chosen = FastEarlyExitEncoder(
            model, exit_layers=[layer], criterion="confidence", threshold=1e-6
        )
        torch.testing.assert_close(chosen(ids).logits, exits[:, layer - 1], atol=1e-5, rtol=1e-5)


def test_independent_labels() -> None:
    config = config_of("gemma2")
    config.problem_type = "multi_label_classification"
    model = classifier_of(config)
    with torch.no_grad():
        expected = model(IDS).logits
    output = FastEarlyExitEncoder(model)(IDS, labels=torch.ones(6, 3))
    torch.testing.assert_close(output.logits, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(
        output.loss, model(IDS, labels=torch.ones(6, 3)).loss, atol=1e-5, rtol=1e-5
    )
    sure = expected.sigmoid()
    torch.testing.assert_close(output.exit_scores, torch.maximum(sure, 1 - sure).amin(dim=-1))


@pytest.mark.parametrize("precision", ["high", "medium"])
def test_products_of_fewer_bits_are_no_reason_to_refuse(precision: str) -> None:
    torch.set_float32_matmul_precision(precision)
    try:
        assert FastEarlyExitEncoder(classifier("gemma2"))(IDS).logits.isfinite().all()
    finally:
        torch.set_float32_matmul_precision("highest")


def test_threads_share_an_encoder() -> None:
    encoder = FastEarlyExitEncoder(with_exits("gemma2"), threshold=0.5)
    expected = [encoder(IDS[i : i + 2]).logits for i in range(0, 6, 2)]
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda i: encoder(IDS[2 * i % 6 :][:2]).logits, range(30)))
    for number, logits in enumerate(found):
        torch.testing.assert_close(logits, expected[number % 3])


@pytest.mark.parametrize("make", [copy.deepcopy, lambda e: pickle.loads(pickle.dumps(e))])
@pytest.mark.parametrize("case", ["gemma2", "gpt2", "qwen2_moe"])
def test_copies_give_what_it_gives(case: str, make: Any) -> None:
    encoder = FastEarlyExitEncoder(with_exits(case), threshold=0.5)
    expected = encoder(IDS)
    copied = make(encoder)
    assert torch.equal(copied(IDS).logits, expected.logits)
    copied.threshold = 1e-6
    assert copied(IDS).exit_layers.tolist() == [1] * 6
    assert torch.equal(encoder(IDS).exit_layers, expected.exit_layers)
    assert copied.to("cpu") is copied
    assert copied.to("meta").device == torch.device("meta")
    assert encoder.device == torch.device("cpu")


@pytest.mark.parametrize("case", ["esm", "gemma2", "mixtral", "nemotron", "phi3, long angles"])
def test_checkpoints(case: str, tmp_path: Path) -> None:
    model = classifier(case)
    model.save_pretrained(tmp_path / "plain")
    expected = FastEarlyExitEncoder(model)(IDS).logits
    encoder = FastEarlyExitEncoder.from_pretrained(tmp_path / "plain", tokenizer=object())
    assert torch.equal(encoder(IDS).logits, expected)

    model = with_exits(case)
    model.save_pretrained(tmp_path / "exits")
    with torch.no_grad():
        expected = model(IDS).logits
    encoder = FastEarlyExitEncoder.from_pretrained(
        tmp_path / "exits", tokenizer=object(), threshold=1.0
    )
    torch.testing.assert_close(encoder(IDS).logits, expected, atol=2e-5, rtol=2e-5)


WITHOUT_LAST_NORM = ("opt", "roc_bert")  # OPT has one, and lists it before its layers


@pytest.mark.parametrize("case", [*CASES, *BACKBONES])
def test_the_last_norm_is_found(case: str) -> None:
    """Without it the encoder gives what its last layer does, and it gives the rest."""
    backbone: Any = blown_up(AutoModel.from_config(config_of(case)), seed=1)
    with torch.no_grad():
        expected = backbone(IDS).last_hidden_state
        norm = take_last_norm(backbone)
        if case in WITHOUT_LAST_NORM:
            assert norm is None
            return
        assert norm is not None
        torch.testing.assert_close(norm(backbone(IDS).last_hidden_state), expected)
    assert take_last_norm(backbone) is None
