"""The encoder in the hands of the libraries that call a Hugging Face classifier, beside the model
itself in the same library.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from datasets import Dataset
from sentence_transformers import CrossEncoder
from support.models import VOCABULARY, random_batch, scramble, tiny_bert_config, tiny_model
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    BertForSequenceClassification,
    BertTokenizer,
    PreTrainedConfig,
    Trainer,
    TrainingArguments,
    pipeline,
)
from transformers.utils import logging

from consistentee_ext import FastEarlyExitEncoder
from consistentee_ext.ops import onednn

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{n}" for n in range(VOCABULARY - 5))]
TEXTS = ["w1 w2 w3", "w9", "w4 w5 w6 w7 w8 w70 w71", "w3 w3"]
PAIRS = [("w1 w2", "w3"), ("w9", "w8 w7 w6"), ("w5", "w5")]
BATCH = random_batch([5, 1, 17, 9], seed=3)


def tokenizer_in(folder: Path) -> Any:
    file = folder / "vocab.txt"
    file.write_text("\n".join(WORDS))
    return BertTokenizer(str(file), model_max_length=64)


def classifier(classes: int = 3, **options: Any) -> Any:
    config = tiny_bert_config(num_labels=classes, **options)
    return scramble(BertForSequenceClassification(config), seed=4)


def pipe(task: str, model: Any, tokenizer: Any) -> Any:
    return pipeline(task, model=model, tokenizer=tokenizer)  # type: ignore[call-overload]


@pytest.fixture
def tokenizer(tmp_path: Path) -> Any:
    return tokenizer_in(tmp_path)


@pytest.fixture(autouse=True)
def no_warnings(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Nothing is printed that the library does not print of its own model."""
    logging.enable_propagation()
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        yield
    logging.disable_propagation()
    said = [r.getMessage() for r in caplog.records if r.levelname in ("WARNING", "ERROR")]
    assert not [line for line in said if "FastEarlyExitEncoder" in line or "not supported" in line]


def assert_answers(found: Any, expected: Any) -> None:
    """The same labels and, nearly, the same numbers."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for name in expected:
            assert_answers(found[name], expected[name])
    elif isinstance(expected, list):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_answers(one, other)
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, abs=1e-5)
    else:
        assert found == expected


@pytest.mark.parametrize("top_k", [1, None])
@pytest.mark.parametrize("classes", [3, 1])
def test_text_classification_pipeline(tokenizer: Any, classes: int, top_k: int | None) -> None:
    """One text, a list, batches, pairs; a single logit is a sigmoid's."""
    model = classifier(classes)
    encoder = FastEarlyExitEncoder(model)
    ours, theirs = (pipe("text-classification", one, tokenizer) for one in (encoder, model))
    pairs = [{"text": text, "text_pair": pair} for text, pair in PAIRS]
    for inputs in (TEXTS[0], TEXTS, pairs[0], pairs):
        assert_answers(ours(inputs, top_k=top_k), theirs(inputs, top_k=top_k))
    batched = {"batch_size": 2, "top_k": top_k}
    assert_answers(ours(TEXTS, **batched), theirs(TEXTS, **batched))


@pytest.mark.parametrize("problem", ["multi_label_classification", "regression"])
def test_pipeline_by_problem(tokenizer: Any, problem: str) -> None:
    model = classifier(1 if problem == "regression" else 3, problem_type=problem)
    ours, theirs = (
        pipe("text-classification", one, tokenizer) for one in (FastEarlyExitEncoder(model), model)
    )
    assert_answers(ours(TEXTS, top_k=None), theirs(TEXTS, top_k=None))


def test_pipeline_of_a_checkpoint_of_ours(tmp_path: Path, tokenizer: Any) -> None:
    """Exits included: the labels are those of the encoder's own logits."""
    model: Any = tiny_model(seed=3)
    model.config.id2label = {0: "bad", 1: "fair", 2: "good"}
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    encoder: Any = FastEarlyExitEncoder.from_pretrained(tmp_path, threshold=0.6)
    assert isinstance(encoder.config, PreTrainedConfig)
    found = pipe("text-classification", encoder, tokenizer)(TEXTS)
    logits = encoder.predict(TEXTS).logits
    assert [one["label"] for one in found] == [
        model.config.id2label[int(label)] for label in logits.argmax(dim=1)
    ]
    scores = torch.tensor([one["score"] for one in found])
    torch.testing.assert_close(scores, logits.softmax(dim=1).amax(dim=1), atol=1e-5, rtol=1e-5)


def test_zero_shot_pipeline(tokenizer: Any) -> None:
    names: dict[str, Any] = {"id2label": {0: "contradiction", 1: "neutral", 2: "entailment"}}
    model = classifier(**names, label2id={name: n for n, name in names["id2label"].items()})
    ours, theirs = (
        pipe("zero-shot-classification", one, tokenizer)
        for one in (FastEarlyExitEncoder(model), model)
    )
    for options in ({}, {"multi_label": True}):
        arguments = {"candidate_labels": ["w5", "w6 w7", "w8"], **options}
        assert_answers(ours(TEXTS, **arguments), theirs(TEXTS, **arguments))


def test_trainer_predicts_and_evaluates(tmp_path: Path, tokenizer: Any) -> None:
    rows = dict(tokenizer(TEXTS)) | {"labels": [0, 2, 1, 1]}
    data = Dataset.from_dict(rows)
    arguments = TrainingArguments(
        str(tmp_path), per_device_eval_batch_size=3, report_to=[], disable_tqdm=True, use_cpu=True
    )
    model = classifier()
    results: list[Any] = [
        Trainer(model=one, args=arguments, processing_class=tokenizer).predict(data)
        for one in (FastEarlyExitEncoder(model), model)
    ]
    found, expected = results
    assert found.predictions.shape == (4, 3)  # exits and scores are no predictions
    torch.testing.assert_close(
        torch.tensor(found.predictions), torch.tensor(expected.predictions), atol=1e-5, rtol=1e-5
    )
    assert found.label_ids.tolist() == [0, 2, 1, 1]
    assert found.metrics["test_loss"] == pytest.approx(expected.metrics["test_loss"], abs=1e-5)
    trainer = Trainer(model=FastEarlyExitEncoder(model), args=arguments, processing_class=tokenizer)
    assert trainer.evaluate(data)["eval_loss"] == pytest.approx(
        expected.metrics["test_loss"], abs=1e-5
    )


def test_accelerate(tokenizer: Any) -> None:
    model = classifier()
    prepared = Accelerator(cpu=True).prepare(FastEarlyExitEncoder(model))
    with torch.no_grad():
        expected = model(**BATCH).logits
    torch.testing.assert_close(prepared(**BATCH).logits, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("classes", [1, 3])
def test_cross_encoder(tmp_path: Path, tokenizer: Any, classes: int) -> None:
    classifier(classes).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    ours, theirs = (CrossEncoder(str(tmp_path), device="cpu") for _ in range(2))
    ours[0].model = FastEarlyExitEncoder(ours[0].model)
    found, expected = (torch.tensor(one.predict(PAIRS)) for one in (ours, theirs))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    if classes == 1:
        ranked = [one.rank("w1 w2", TEXTS, return_documents=True) for one in (ours, theirs)]
        for one, other in zip(*ranked, strict=True):
            assert one["corpus_id"] == other["corpus_id"]
            assert one["score"] == pytest.approx(float(other["score"]), abs=1e-5)


@pytest.mark.parametrize(
    ("problem", "labels"),
    [
        (None, torch.tensor([0, 2, 1, 1])),
        (None, torch.rand(4, 3).round()),
        ("single_label_classification", torch.tensor([2, 2, 0, 1])),
        ("multi_label_classification", torch.tensor([[0.0, 1, 1]] * 4)),
        ("regression", torch.rand(4, 3)),
    ],
)
def test_loss_and_tuples(problem: str | None, labels: Tensor) -> None:
    model = classifier(problem_type=problem)
    encoder = FastEarlyExitEncoder(model)
    with torch.no_grad():
        expected = model(**BATCH, labels=labels)
    found = encoder(**BATCH, labels=labels)
    torch.testing.assert_close(found.loss, expected.loss, atol=1e-5, rtol=1e-5)
    assert found["loss"] is found.loss
    assert encoder.config.problem_type == problem
    loss, logits, layers, _ = encoder(**BATCH, labels=labels, return_dict=False)
    assert torch.equal(loss, found.loss)
    assert torch.equal(logits, found.logits)
    assert layers.tolist() == [4] * 4
    assert torch.equal(encoder(**BATCH, return_dict=False)[0], logits)


def test_results_are_the_callers_own() -> None:
    logits = FastEarlyExitEncoder(classifier())(**BATCH).logits
    weight = torch.ones(3, requires_grad=True)
    (logits * weight).sum().backward()
    assert weight.grad is not None
    torch.testing.assert_close(weight.grad, logits.sum(dim=0))
    logits += 1


def test_what_callers_read() -> None:
    model = classifier()
    model.config._name_or_path = "some/model"
    encoder = FastEarlyExitEncoder(model)
    assert isinstance(encoder, nn.Module)
    assert encoder.config is not model.config
    assert encoder.main_input_name == "input_ids"
    assert encoder.input_modalities == ("text",)
    assert encoder.num_labels == 3
    assert encoder.name_or_path == "some/model"
    assert encoder.accepts_loss_kwargs is False
    assert encoder.can_generate() is False
    assert encoder.training is False
    parameter = next(encoder.parameters())
    assert (parameter.dtype, parameter.device) == (encoder.dtype, encoder.device)
    assert encoder.eval() is encoder
    assert encoder.to("cpu") is encoder.cpu() is encoder.float() is encoder


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda e: e.train(), "train: expected False"),
        (lambda e: e.half(), r"dtype: expected torch.float32, got torch.float16"),
        (lambda e: e.to(torch.bfloat16), r"dtype: expected torch.float32, got torch.bfloat16"),
        (lambda e: e.save_pretrained("x"), "save_pretrained: not kept"),
        (lambda e: e.state_dict(), "state_dict: not kept"),
        (lambda e: e.load_state_dict({}), "load_state_dict: weights are packed"),
        (lambda e: e(**BATCH, labels=torch.zeros(3).long()), r"labels: expected shape \(4,\) or"),
        (lambda e: e(**BATCH, labels=[0, 1, 2, 1]), "labels: expected a tensor, got list"),
        (lambda e: e.generate(), "generate: this is a classifier"),
        (lambda e: e.get_input_embeddings(), "get_input_embeddings: not kept"),
        (lambda e: e(**BATCH, output_hidden_states=True), "output_hidden_states: expected False"),
        (lambda e: e(**BATCH, output_attentions=True), "output_attentions: expected False"),
        (lambda e: e(inputs_embeds=torch.zeros(1, 2, 32)), "inputs_embeds: expected None"),
        (lambda e: e(), "input_ids: expected an integer tensor"),
        (lambda e: e(**BATCH, position_ids=torch.full((4, 17), 512)), "position_ids: expected"),
        (lambda e: e(**BATCH, position_ids=torch.zeros(3, 17).long()), "position_ids: expected"),
        (lambda e: e(**BATCH, position_ids=[1]), "position_ids: expected"),
    ],
)
def test_what_it_cannot_give_is_refused_in_one_line(call: Any, message: str) -> None:
    with pytest.raises((RuntimeError, ValueError, TypeError), match=message) as error:
        call(FastEarlyExitEncoder(classifier()))
    assert "\n" not in str(error.value)


def test_states_that_a_checkpoint_asks_for_are_left_out() -> None:
    model = classifier()
    model.config.output_hidden_states = True
    encoder = FastEarlyExitEncoder(model)
    assert list(encoder(**BATCH)) == ["logits", "exit_layers", "exit_scores"]
    assert encoder.config.output_hidden_states is False
    assert model.config.output_hidden_states is True


@pytest.mark.parametrize("shared", [True, False])
def test_position_ids(shared: bool) -> None:
    model = classifier()
    positions = torch.randint(0, 512, (1 if shared else 4, 17))
    with torch.no_grad():
        expected = model(**BATCH, position_ids=positions).logits
    found = FastEarlyExitEncoder(model)(**BATCH, position_ids=positions).logits
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("backend", [None, "torch"])
def test_padding_in_front_changes_nothing(backend: str | None) -> None:
    encoder = FastEarlyExitEncoder(classifier(), backend=backend)
    expected = encoder(**BATCH).logits
    lengths = BATCH["attention_mask"].sum(dim=1).tolist()
    left = {
        name: torch.stack([row.roll(len(row) - n) for row, n in zip(rows, lengths, strict=True)])
        for name, rows in BATCH.items()
    }
    assert left["attention_mask"][1].tolist() == [0] * 16 + [1]
    torch.testing.assert_close(encoder(**left).logits, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_16_bits_where_they_are_slow(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    monkeypatch.setattr("consistentee_ext.placement.is_fast", lambda dtype: dtype == torch.float32)
    model = classifier().to(dtype)
    with pytest.warns(UserWarning, match=f"dtype: the model is in {dtype}, .* runs in float32"):
        encoder = FastEarlyExitEncoder(model)
    assert encoder.dtype == torch.float32
    assert FastEarlyExitEncoder(model, dtype=dtype).dtype == dtype
    for name in ("auto", str(dtype).removeprefix("torch.")):
        assert FastEarlyExitEncoder(model, dtype=name).dtype == dtype
    with torch.no_grad():
        expected = model.float()(**BATCH).logits
    torch.testing.assert_close(encoder(**BATCH).logits, expected, atol=1e-5, rtol=1e-5)


def test_which_16_bits_are_fast() -> None:
    assert onednn.is_fast(torch.float32)
    assert not onednn.is_fast(torch.float16)
    assert onednn.is_fast(torch.bfloat16) == torch.cpu._is_avx512_bf16_supported()


def test_from_pretrained_takes_what_hugging_face_takes(tmp_path: Path, tokenizer: Any) -> None:
    folder = tmp_path / "inner" / "model"
    model = classifier()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    options: dict[str, Any] = {"local_files_only": True, "token": None, "revision": "main"}
    encoder = FastEarlyExitEncoder.from_pretrained(
        tmp_path / "inner", subfolder="model", dtype="float32", cache_dir=tmp_path, **options
    )
    with torch.no_grad():
        expected = model(**tokenizer(TEXTS, padding=True, return_tensors="pt")).logits
    torch.testing.assert_close(encoder.predict(TEXTS).logits, expected, atol=1e-5, rtol=1e-5)
    assert FastEarlyExitEncoder.from_pretrained(folder, dtype="auto").dtype == torch.float32
    with pytest.raises(ValueError, match=r"dtype: expected one of .*, got 'int8'"):
        FastEarlyExitEncoder.from_pretrained(folder, dtype="int8")


@pytest.mark.parametrize("name", ["./none", "/none/at/all", "a/b/c", "tests/none", "none/"])
def test_a_folder_that_is_not_there_is_not_looked_for_elsewhere(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(AutoConfig, "from_pretrained", None)
    monkeypatch.setattr(PreTrainedConfig, "get_config_dict", None)
    monkeypatch.chdir(Path(__file__).parents[2])
    for given in (name, Path(name)):
        with pytest.raises(FileNotFoundError, match="expected a folder, found none"):
            FastEarlyExitEncoder.from_pretrained(given)
