"""Every family against its Hugging Face classifier, with weights large enough to show a mistake."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.fake_device import Device
from support.models import scramble
from torch import nn
from transformers import AutoConfig, AutoModelForSequenceClassification, ElectraConfig

from consistentee.model.modeling import ConsistentEEForSequenceClassification
from consistentee_ext import FastEarlyExitEncoder
from consistentee_ext.configuration import ConsistentEEConfig
from consistentee_ext.engines.device import DeviceEngine
from consistentee_ext.engines.native import NativeEngine
from consistentee_ext.families import FAMILIES

VOCABULARY, PAD = 60, 1
FIELDS: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 40,
    "pad_token_id": PAD,
    "num_labels": 3,
}
# What a case changes of its family: kinds of segments, of activation, of position.
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("bert", {}),
    "bert with one segment": ("bert", {"type_vocab_size": 1, "hidden_act": "relu"}),
    "camembert": ("camembert", {"type_vocab_size": 1}),
    "data2vec-text": ("data2vec-text", {"layer_norm_eps": 1e-5}),
    "distilbert": ("distilbert", {"activation": "gelu"}),
    "distilbert with sinusoids": ("distilbert", {"sinusoidal_pos_embds": True}),
    "ernie": ("ernie", {}),
    "ernie with tasks": ("ernie", {"use_task_id": True}),
    "roberta": ("roberta", {"type_vocab_size": 1}),
    "roberta, padding id 0": ("roberta", {"type_vocab_size": 2, "pad_token_id": 0}),
    "xlm-roberta": ("xlm-roberta", {"type_vocab_size": 1}),
}
each_case = pytest.mark.parametrize("case", CASES)


def test_every_family_has_a_case() -> None:
    assert {kind for kind, _ in CASES.values()} == set(FAMILIES)


def blown_up(model: nn.Module, seed: int) -> nn.Module:
    """Weights at which a wrong position, segment, norm or activation changes every logit."""
    scramble(model, seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name.lower() and name.endswith("weight"):
                parameter.normal_(1.0, 0.3, generator=generator)
            elif "policy" in name:  # its probabilities stay apart from 0 and 1
                parameter.normal_(0.0, 0.1, generator=generator)
            elif name.endswith("bias"):
                parameter.normal_(0.0, 0.3, generator=generator)
            elif "embeddings" in name:
                parameter.normal_(0.0, 0.7, generator=generator)
            else:
                parameter.normal_(0.0, 0.35, generator=generator)
    return model.eval()


def config_of(case: str) -> Any:
    kind, changes = CASES[case]
    return AutoConfig.for_model(kind, **(FIELDS | changes))


def classifier(case: str, seed: int = 0) -> Any:
    torch.manual_seed(0)  # sinusoids aside, every weight is drawn again
    return blown_up(AutoModelForSequenceClassification.from_config(config_of(case)), seed)


def batch_of(case: str, lengths: list[int], seed: int = 0) -> dict[str, torch.Tensor]:
    """Padded with the padding id; one of the rows has it inside, and one a hole in its mask."""
    config = config_of(case)
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(2, VOCABULARY, (len(lengths), max(lengths)), generator=generator)
    mask = (torch.arange(ids.shape[1]) < torch.tensor(lengths)[:, None]).long()
    ids = torch.where(mask == 1, ids, config.pad_token_id)
    longest = max(range(len(lengths)), key=lengths.__getitem__)
    ids[longest, 4] = config.pad_token_id
    mask[longest, 6:8] = 0
    batch = {"input_ids": ids, "attention_mask": mask}
    if getattr(config, "type_vocab_size", 1) > 1 and config.model_type != "distilbert":
        batch["token_type_ids"] = torch.randint(0, 2, ids.shape, generator=generator)
    return batch


LENGTHS = [5, 1, 17, 9, 30, 2]


@each_case
def test_logits_are_the_hugging_face_models(case: str, backend: str) -> None:
    model, batch = classifier(case), batch_of(case, LENGTHS)
    with torch.no_grad():
        expected = model(**batch).logits
    encoder = FastEarlyExitEncoder(model, backend=backend)
    found = encoder(**batch).logits
    assert (found - expected).abs().max() <= 2e-5 * expected.abs().max()
    if backend == "cpu":
        assert isinstance(encoder._engine, NativeEngine)


@each_case
def test_padding_on_the_left_changes_no_answer(case: str, backend: str) -> None:
    """What the Hugging Face model gives of each row alone, without padding."""
    model, batch = classifier(case), batch_of(case, LENGTHS)
    batch["attention_mask"][:] = torch.arange(30) < torch.tensor(LENGTHS)[:, None]
    lengths = batch["attention_mask"].sum(dim=1)
    left = {
        name: torch.stack([row.roll(-int(n)) for row, n in zip(rows, lengths, strict=True)])
        for name, rows in batch.items()
    }
    expected = []
    with torch.no_grad():
        for row, n in enumerate(lengths):
            alone = {name: rows[row : row + 1, : int(n)] for name, rows in batch.items()}
            expected.append(model(**alone).logits)
    assert left["attention_mask"][:, -1].all()
    found = FastEarlyExitEncoder(model, backend=backend)(**left).logits
    wanted = torch.cat(expected)
    assert (found - wanted).abs().max() <= 2e-5 * wanted.abs().max()


@each_case
def test_logits_are_the_same_on_the_path_of_a_device(
    case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("consistentee_ext.engines.load_device_ops", lambda backend: Device())
    monkeypatch.setattr(
        "consistentee_ext.packed_module.select_backend", lambda device, backend: "cuda"
    )
    model, batch = classifier(case), batch_of(case, LENGTHS)
    with torch.no_grad():
        expected = model(**batch).logits
    encoder = FastEarlyExitEncoder(model, backend="cuda")
    assert isinstance(encoder._engine, DeviceEngine)
    found = encoder(**batch).logits
    assert (found - expected).abs().max() <= 2e-5 * expected.abs().max()


@each_case
def test_sixteen_bits_are_as_near_as_hugging_faces(case: str) -> None:
    model, batch = classifier(case), batch_of(case, LENGTHS)
    with torch.no_grad():
        exact = model(**batch).logits
        eager = model.bfloat16()(**batch).logits.float()
    found = FastEarlyExitEncoder(classifier(case), dtype=torch.bfloat16)(**batch).logits
    assert (found - exact).abs().max() <= 2 * (eager - exact).abs().max() + 1e-2


@each_case
@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_exits_match_the_padded_model(case: str, pooling: str, backend: str) -> None:
    """A ConsistentEE classifier on the family's encoder: the same rows leave at the same layers."""
    config = ConsistentEEConfig(config_of(case), pooling=pooling, policy_input="both", num_labels=3)
    model = blown_up(ConsistentEEForSequenceClassification(config), seed=2)
    batch = batch_of(case, LENGTHS, seed=1)
    with torch.no_grad():
        output = model(**batch)
    certain = torch.ones(len(LENGTHS), 1)
    probability = torch.cat((output.policy_logits.sigmoid(), certain), dim=1)
    threshold = probability[:, 0].median().item() + 1e-4  # about half of the rows stay
    leaves = probability > threshold
    leaves[:, -1] = True
    layers = leaves.int().argmax(dim=1)
    found = FastEarlyExitEncoder(model, backend=backend, threshold=threshold)(**batch)
    assert found.exit_layers.tolist() == (layers + 1).tolist()
    assert len(set(layers.tolist())) > 1
    expected = output.exit_logits[torch.arange(len(LENGTHS)), layers]
    assert (found.logits - expected).abs().max() <= 2e-5 * expected.abs().max()


@each_case
@pytest.mark.needs_native
def test_a_row_does_not_depend_on_the_batch(case: str) -> None:
    encoder = FastEarlyExitEncoder(classifier(case))
    batch = batch_of(case, LENGTHS)
    together = encoder(**batch).logits
    for row in range(len(LENGTHS)):
        alone = encoder(**{name: values[row : row + 1] for name, values in batch.items()}).logits
        torch.testing.assert_close(alone[0], together[row], atol=1e-5, rtol=1e-5)


@each_case
def test_texts_are_packed_as_batches_are(case: str) -> None:
    """`predict` counts positions from the lists of the tokenizer."""
    encoder = FastEarlyExitEncoder(classifier(case))
    batch = batch_of(case, [7, 3, 12])
    rows = [ids[:n].tolist() for ids, n in zip(batch["input_ids"], (7, 3, 12), strict=True)]

    def tokenizer(texts: list[str], **options: object) -> dict[str, list[list[int]]]:
        return {"input_ids": rows}

    found = encoder.predict(["a", "b", "c"], tokenizer).logits
    mask = (torch.arange(12) < torch.tensor([[7], [3], [12]])).long()
    expected = encoder(batch["input_ids"], mask).logits
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_rows_up_to_the_last_position() -> None:
    """RoBERTa counts from the padding id on: 38 of its 40 positions are for tokens."""
    for case, longest in (("bert", 40), ("roberta", 38), ("roberta, padding id 0", 39)):
        encoder = FastEarlyExitEncoder(classifier(case))
        assert encoder.max_positions == longest
        ids = torch.full((1, longest + 1), 5)
        assert encoder(ids[:, :longest]).logits.shape == (1, 3)
        message = f"input_ids: expected at most {longest} positions, got {longest + 1}"
        with pytest.raises(ValueError, match=message):
            encoder(ids)


def test_segments_where_there_are_none() -> None:
    encoder = FastEarlyExitEncoder(classifier("distilbert"))
    ids = torch.tensor([[2, 3, 4]])
    expected = encoder(ids).logits
    assert torch.equal(encoder(ids, token_type_ids=torch.zeros_like(ids)).logits, expected)
    with pytest.raises(ValueError, match="token_type_ids: expected segments from 0 to 0, got 1"):
        encoder(ids, token_type_ids=torch.ones_like(ids))


def test_unknown_families_and_heads_raise() -> None:
    electra = AutoModelForSequenceClassification.from_config(
        ElectraConfig(vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=2)
    )
    with pytest.raises(ValueError, match=r"model: expected an encoder of .*roberta.*'electra'"):
        FastEarlyExitEncoder(electra)
    with pytest.raises(ValueError, match="model: expected a ConsistentEE classifier or a Hugging"):
        FastEarlyExitEncoder(classifier("bert").bert)
    with pytest.raises(ValueError, match=r"model: expected an encoder, got .*is_decoder=True"):
        FastEarlyExitEncoder(
            AutoModelForSequenceClassification.from_config(
                AutoConfig.for_model("roberta", **FIELDS, is_decoder=True)
            )
        )


@pytest.mark.parametrize("case", ["roberta", "distilbert"])
def test_checkpoints_of_a_family(case: str, tmp_path: Any) -> None:
    model, batch = classifier(case), batch_of(case, LENGTHS)
    model.save_pretrained(tmp_path)
    expected = FastEarlyExitEncoder(model)(**batch).logits
    encoder = FastEarlyExitEncoder.from_pretrained(tmp_path, tokenizer=object())
    assert torch.equal(encoder(**batch).logits, expected)
