"""FastEarlyExitEncoder against the Hugging Face model on padded batches, at full depth."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, cast

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from support.backends import BACKENDS
from support.models import random_batch, tiny_classifier, tiny_model
from torch import nn
from transformers import BertConfig, BertForSequenceClassification, BertModel

from consistentee_ext import FastEarlyExitEncoder
from consistentee_ext.output import EarlyExitOutput

NEAR = 1e-3  # a probability this near its threshold may fall on either side


@dataclass
class Expected:
    """What the padded model says each row should give, exits simulated from all layers."""

    logits: torch.Tensor
    exit_layers: torch.Tensor
    scores: torch.Tensor
    decided: torch.Tensor  # [N], no probability up to the exit is near its threshold


def simulate(model: torch.nn.Module, inputs: dict, thresholds: list[float]) -> Expected:
    """The exit rule, row by row and layer by layer, on padded full-depth hidden states."""
    with torch.no_grad():
        output = model(**inputs)
    probability = output.policy_logits.sigmoid()
    layers, logits, scores, decided = [], [], [], []
    for row in range(len(probability)):
        exit_layer, near = output.exit_logits.shape[1], False
        for layer, threshold in enumerate(thresholds, start=1):
            p = probability[row, layer - 1].item()
            near = near or abs(p - threshold) < NEAR
            if p > threshold:
                exit_layer = layer
                break
        last = exit_layer > len(thresholds)
        layers.append(exit_layer)
        logits.append(output.exit_logits[row, exit_layer - 1])
        scores.append(1.0 if last else probability[row, exit_layer - 1].item())
        decided.append(not near)
    return Expected(
        torch.stack(logits), torch.tensor(layers), torch.tensor(scores), torch.tensor(decided)
    )


def check_against(found: EarlyExitOutput, expected: Expected) -> None:
    rows = expected.decided
    assert torch.equal(found.exit_layers[rows], expected.exit_layers[rows])
    torch.testing.assert_close(found.logits[rows], expected.logits[rows], atol=1e-4, rtol=0)
    torch.testing.assert_close(found.exit_scores[rows], expected.scores[rows], atol=1e-4, rtol=0)


@pytest.mark.parametrize("pooling", ["cls", "mean"])
@pytest.mark.parametrize("policy_input", ["state", "prediction", "both"])
def test_exits_match_the_padded_model(backend: str, pooling: str, policy_input: str) -> None:
    model = tiny_model(pooling, policy_input)
    inputs = random_batch([5, 30, 1, 17, 64, 2, 512, 9, 33, 12] * 3, seed=1)
    encoder = FastEarlyExitEncoder(model, backend=backend)
    expected = simulate(model, inputs, [0.5] * 3)
    # The random policies must really spread the rows, or this would show little.
    assert len(expected.exit_layers.unique()) > 1
    assert expected.decided.float().mean() > 0.8
    check_against(encoder(**inputs), expected)


MODELS = {pooling: tiny_model(pooling, "both") for pooling in ("cls", "mean")}
ENCODERS = {
    (pooling, backend): FastEarlyExitEncoder(model, backend=backend)
    for pooling, model in MODELS.items()
    for backend in BACKENDS
}


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    lengths=st.lists(st.one_of(st.integers(1, 24), st.integers(1, 512)), min_size=1, max_size=10),
    threshold=st.sampled_from([1e-6, 0.2, 0.4, 0.5, 0.6, 0.8, 1.0]),
    pooling=st.sampled_from(["cls", "mean"]),
    backend=st.sampled_from(BACKENDS),
    seed=st.integers(0, 10_000),
    order=st.randoms(use_true_random=False),
)
@example([512] * 3, 1.0, "cls", BACKENDS[0], 0, None)
@example([7], 1e-6, "mean", BACKENDS[0], 0, None)
def test_batch_composition_does_not_matter(
    lengths: list[int],
    threshold: float,
    pooling: str,
    backend: str,
    seed: int,
    order: Random | None,
) -> None:
    model, encoder = MODELS[pooling], ENCODERS[pooling, backend]
    encoder.threshold = threshold
    inputs = random_batch(lengths, seed)
    found = encoder(**inputs)
    expected = simulate(model, inputs, [threshold] * 3)
    check_against(found, expected)
    if threshold == 1.0:
        assert found.exit_layers.tolist() == [4] * len(lengths)
    if threshold == 1e-6:
        assert found.exit_layers.tolist() == [1] * len(lengths)

    rows = list(range(len(lengths)))
    if order is not None:
        order.shuffle(rows)
    shuffled = encoder(**{name: tensor[rows] for name, tensor in inputs.items()})
    for place, row in enumerate(rows):
        length = lengths[row]
        alone = encoder(**{name: t[row : row + 1, :length] for name, t in inputs.items()})
        torch.testing.assert_close(shuffled.logits[place], found.logits[row], atol=1e-4, rtol=0)
        if expected.decided[row]:
            assert alone.exit_layers[0] == shuffled.exit_layers[place] == found.exit_layers[row]
            torch.testing.assert_close(alone.logits[0], found.logits[row], atol=1e-4, rtol=0)


def test_plain_classifier_runs_at_full_depth_with_the_same_logits(backend: str) -> None:
    model = tiny_classifier(hidden_act="relu")
    inputs = random_batch([3, 40, 1, 22], seed=2)
    encoder = FastEarlyExitEncoder(model, backend=backend)
    found = encoder(**inputs)
    with torch.no_grad():
        expected = model(**inputs).logits
    torch.testing.assert_close(found.logits, expected, atol=1e-5, rtol=1e-5)
    assert found.exit_layers.tolist() == [4] * 4
    assert encoder.threshold == 1.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_a_pass_errs_little_more_than_eager(backend: str, dtype: torch.dtype) -> None:
    """Against the model in float64; eager PyTorch's own error in the dtype is the measure."""
    model = tiny_classifier()
    inputs = random_batch([3, 40, 1, 22, 90], seed=2)
    found = FastEarlyExitEncoder(model, dtype=dtype, backend=backend)(**inputs).logits
    with torch.no_grad():
        exact = model.double()(**inputs).logits
        nn.Module.to(model, dtype)
        eager = model(**inputs).logits
    assert found.dtype == torch.float32
    error, eager_error = (found - exact).abs().max(), (eager - exact).abs().max()
    assert error <= 2 * eager_error + (1e-6 if dtype == torch.float32 else 1e-3)


def test_the_model_is_not_changed() -> None:
    model = tiny_model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    encoder = FastEarlyExitEncoder(model, dtype=torch.bfloat16)
    encoder(**random_batch([3, 4]))
    for name, tensor in model.state_dict().items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, before[name])


def test_loading_holds_one_copy_of_the_weights(tmp_path: Path) -> None:
    """The layers of the loaded model are gone once they are packed; a model given stays whole."""
    model = tiny_model()
    model.save_pretrained(tmp_path)
    tokenizer = object()
    packed: list[Any] = []

    class Spy(FastEarlyExitEncoder):
        def __init__(self, model: torch.nn.Module, **options: Any) -> None:
            packed.append(model)
            super().__init__(model, **options)

    inputs = random_batch([5, 9])
    expected = FastEarlyExitEncoder(model)(**inputs)
    found = Spy.from_pretrained(tmp_path, tokenizer=tokenizer)(**inputs)
    assert torch.equal(found.logits, expected.logits)
    layers = [p.device.type for p in packed[0].backbone.encoder.parameters()]
    assert set(layers) == {"meta"}
    assert {p.device.type for p in model.parameters()} == {"cpu"}


def test_threads_share_an_encoder(backend: str) -> None:
    """Calls from several threads at once give what they give one after the other."""
    encoder = FastEarlyExitEncoder(tiny_model(), backend=backend)
    generator = torch.Generator().manual_seed(0)
    batches = [
        random_batch(torch.randint(1, 60, (9,), generator=generator).tolist(), seed)
        for seed in range(24)
    ]
    expected = [encoder(**batch) for batch in batches]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(4):
            for output, alone in zip(
                pool.map(lambda batch: encoder(**batch), batches), expected, strict=True
            ):
                assert torch.equal(output.logits, alone.logits)
                assert torch.equal(output.exit_layers, alone.exit_layers)


def test_thresholds_a_layer() -> None:
    model = tiny_model()
    inputs = random_batch([4, 9, 30, 12, 6, 20] * 3, seed=5)
    encoder = FastEarlyExitEncoder(model)
    for value in ([1.0, 0.3, 0.5], {1: 1.0, 2: 0.3, 3: 0.5}):
        encoder.threshold = value
        assert encoder.threshold == {1: 1.0, 2: 0.3, 3: 0.5}
        found = encoder(**inputs)
        check_against(found, simulate(model, inputs, [1.0, 0.3, 0.5]))
        assert 1 not in found.exit_layers
    encoder.threshold = 0.7
    assert encoder.threshold == 0.7
    check_against(encoder(**inputs), simulate(model, inputs, [0.7] * 3))


def test_exit_layers_choose_where_rows_may_leave() -> None:
    model = tiny_model(policy_input="state")  # a policy that does not see the exit before it
    inputs = random_batch([4, 9, 30, 12, 6, 20] * 3, seed=6)
    encoder = FastEarlyExitEncoder(model, exit_layers=[2])
    assert encoder.exit_layers == (2, 4)
    found = encoder(**inputs)
    check_against(found, simulate(model, inputs, [1.0, 0.5, 1.0]))
    assert set(found.exit_layers.tolist()) <= {2, 4}


@pytest.mark.parametrize(
    ("criterion", "threshold"),
    [("confidence", 0.6), ("entropy", 0.6), ("patience", 0.6), ("energy", 0.925)],
)
def test_criteria_without_policy(backend: str, criterion: str, threshold: float) -> None:
    model = tiny_model(classes=3)
    inputs = random_batch([4, 9, 30, 12, 6, 20] * 4, seed=7)
    encoder = FastEarlyExitEncoder(model, criterion=criterion, threshold=threshold, backend=backend)
    found = encoder(**inputs)
    with torch.no_grad():
        logits = model(**inputs).exit_logits.double()
    probability = logits.softmax(-1)
    agree = logits.argmax(-1).diff(dim=1) == 0
    for row in range(len(logits)):
        streak, expected = 0, 4
        for layer in range(1, 4):
            streak = streak + 1 if layer > 1 and agree[row, layer - 2] else 0
            p = probability[row, layer - 1]
            entropy = -(p * p.log()).sum() / torch.tensor(3.0).double().log()
            total = logits[row, layer - 1].exp().sum()
            score = {"confidence": p.max(), "entropy": 1 - entropy, "patience": streak / 3}
            score["energy"] = total / (1 + total)
            if score[criterion] > threshold:
                expected = layer
                break
        assert found.exit_layers[row] == expected


def test_position_limit_is_reached_but_not_passed() -> None:
    encoder = FastEarlyExitEncoder(tiny_model(max_position_embeddings=16))
    encoder(**random_batch([16]))
    with pytest.raises(ValueError, match="input_ids: expected at most 16 positions, got 17"):
        encoder(**random_batch([17]))


def test_empty_batch_gives_empty_results() -> None:
    encoder = FastEarlyExitEncoder(tiny_model(classes=5))
    for shape in ((0, 0), (0, 7)):
        found = encoder(torch.zeros(shape, dtype=torch.int64))
        assert found.logits.shape == (0, 5)
        assert found.exit_layers.shape == found.exit_scores.shape == (0,)
        assert found.exit_layers.dtype == torch.int64


def test_output_is_a_hugging_face_output() -> None:
    found = FastEarlyExitEncoder(tiny_model())(**random_batch([3]))
    assert list(found.keys()) == ["logits", "exit_layers", "exit_scores"]
    assert found["logits"] is found.logits
    assert found.logits.dtype == found.exit_scores.dtype == torch.float32


def test_bad_construction_names_the_argument() -> None:
    model = tiny_model()
    with pytest.raises(ValueError, match=r"exit_layers: expected some of \[1, 2, 3, 4\], got 5"):
        FastEarlyExitEncoder(model, exit_layers=[5])
    with pytest.raises(TypeError, match="exit_layers: expected a sequence"):
        FastEarlyExitEncoder(model, exit_layers=cast(Any, 2))
    with pytest.raises(ValueError, match="criterion: expected one of"):
        FastEarlyExitEncoder(model, criterion="mood")
    with pytest.raises(ValueError, match="criterion: expected one of"):
        FastEarlyExitEncoder(model).criterion = "mood"
    with pytest.raises(ValueError, match="dtype: expected one of"):
        FastEarlyExitEncoder(model, dtype=torch.float64)
    for device in ("cuda:99", "toaster"):
        with pytest.raises(ValueError, match=f"device: expected one .* got {device}: "):
            FastEarlyExitEncoder(model, device=device)
    with pytest.raises(ValueError, match="backend: expected one of"):
        FastEarlyExitEncoder(model, backend="tpu")
    with pytest.raises(RuntimeError, match="backend 'triton' cannot run on cpu: "):
        FastEarlyExitEncoder(model, backend="triton")
    with pytest.raises(TypeError, match="model: expected a classifier module, got str"):
        FastEarlyExitEncoder(cast(Any, "bert-base-uncased"))
    with pytest.raises(ValueError, match=r"model: expected a ConsistentEE .* got BertModel"):
        FastEarlyExitEncoder(BertModel(cast(BertConfig, model.config.backbone)))
    decoder = BertConfig(**(model.config.backbone.to_dict() | {"is_decoder": True}))
    with pytest.raises(ValueError, match="expected an encoder, got a config with is_decoder"):
        FastEarlyExitEncoder(BertForSequenceClassification(decoder))
