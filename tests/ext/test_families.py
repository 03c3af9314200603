"""Every family against its Hugging Face classifier, with weights large enough to show a mistake."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from support.fake_device import Device
from support.family_cases import (
    CASES,
    FIELDS,
    VOCABULARY,
    blown_up,
    classifier,
    config_of,
    sixteen_bit_errors,
)
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, FNetConfig

from consistentee.model.modeling import ConsistentEEForSequenceClassification
from consistentee_ext import FastEarlyExitEncoder
from consistentee_ext.configuration import ConsistentEEConfig
from consistentee_ext.engines.device import DeviceEngine
from consistentee_ext.engines.native import NativeEngine
from consistentee_ext.families import FAMILIES

BERT_KIN = ("bert", "camembert", "data2vec-text", "distilbert", "ernie", "roberta", "xlm-roberta")
# Positions alone say where a token is.
TAKE_HOLES = (
    *(*BERT_KIN, "albert", "electra", "megatron-bert", "rembert"),
    *("roberta-prelayernorm", "xlm-roberta-xl"),
)
CAUSAL = ("gemma", "gemma3_text", "llama", "mistral", "qwen2", "qwen3")
each_case = pytest.mark.parametrize("case", CASES)


def test_every_family_has_a_case() -> None:
    assert {kind for kind, _ in CASES.values()} == set(FAMILIES)


def batch_of(case: str, lengths: list[int], seed: int = 0) -> dict[str, torch.Tensor]:
    """Padded with the padding id; one of the rows has it inside, one at its end, and one a hole in
    its mask, where the family takes one.
    """
    config = config_of(case)
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(2, VOCABULARY, (len(lengths), max(lengths)), generator=generator)
    mask = (torch.arange(ids.shape[1]) < torch.tensor(lengths)[:, None]).long()
    ids = torch.where(mask == 1, ids, config.pad_token_id)
    longest = max(range(len(lengths)), key=lengths.__getitem__)
    ids[longest, 4] = config.pad_token_id
    ids[0, lengths[0] - 1] = config.pad_token_id
    if config.model_type in TAKE_HOLES:
        mask[longest, 6:8] = 0
    batch = {"input_ids": ids, "attention_mask": mask}
    if getattr(config, "type_vocab_size", 1) > 1 and config.model_type != "distilbert":
        batch["token_type_ids"] = torch.randint(0, 2, ids.shape, generator=generator)
    return batch


def tolerance(case: str) -> float:
    """Of the largest logit. With some weights the Hugging Face model itself is 3e-5 off what it
    gives in float64.
    """
    return 1e-4 if case == "roberta-prelayernorm" else 2e-5


LENGTHS = [5, 1, 17, 9, 30, 2]


@each_case
def test_logits_are_the_hugging_face_models(case: str, backend: str) -> None:
    model, batch = classifier(case), batch_of(case, LENGTHS)
    with torch.no_grad():
        expected = model(**batch).logits
    encoder = FastEarlyExitEncoder(model, backend=backend)
    found = encoder(**batch).logits
    assert (found - expected).abs().max() <= tolerance(case) * expected.abs().max()
    if backend == "cpu":  # a convolution is plain PyTorch
        assert isinstance(encoder._engine, NativeEngine) != ("convolution" in case)


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
    assert (found - wanted).abs().max() <= tolerance(case) * wanted.abs().max()


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
    assert (found - expected).abs().max() <= tolerance(case) * expected.abs().max()


@each_case
def test_sixteen_bits_are_as_near_as_hugging_faces(case: str) -> None:
    """On average: of a few rows either may be the nearer one."""
    errors = torch.zeros(2)
    for seed in range(3):
        model, batch = classifier(case, seed), batch_of(case, [5, 9, 17, 30, 12, 20, 8, 3], seed)
        errors += sixteen_bit_errors(model, batch)
    assert errors[0] <= 1.5 * errors[1]


@each_case
@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_exits_match_the_padded_model(case: str, pooling: str, backend: str) -> None:
    """A ConsistentEE classifier on the family's encoder: the same rows leave at the same layers."""
    config = ConsistentEEConfig(config_of(case), pooling=pooling, policy_input="both", num_labels=3)
    model: Any = blown_up(ConsistentEEForSequenceClassification(config), seed=2)
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
    assert (found.logits - expected).abs().max() <= tolerance(case) * expected.abs().max()


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
    fnet = AutoModelForSequenceClassification.from_config(
        FNetConfig(vocab_size=9, hidden_size=8, num_hidden_layers=1, intermediate_size=8)
    )
    with pytest.raises(ValueError, match=r"model: expected an encoder of .*roberta.*'fnet'"):
        FastEarlyExitEncoder(fnet)
    with pytest.raises(ValueError, match="model: expected a ConsistentEE classifier or a Hugging"):
        FastEarlyExitEncoder(classifier("bert").bert)
    with pytest.raises(ValueError, match=r"model: expected an encoder, got .*is_decoder=True"):
        FastEarlyExitEncoder(
            AutoModelForSequenceClassification.from_config(
                AutoConfig.for_model("roberta", **FIELDS, is_decoder=True)
            )
        )


SAVED = [
    *("roberta", "distilbert", "albert with groups", "modernbert", "deberta-v3"),
    *("gemma3", "gte", "jina", "nomic", "roformer"),
]


@pytest.mark.parametrize("case", SAVED)
def test_checkpoints_of_a_family(case: str, tmp_path: Any) -> None:
    model, batch = classifier(case), batch_of(case, LENGTHS)
    model.save_pretrained(tmp_path)
    expected = FastEarlyExitEncoder(model)(**batch).logits
    encoder = FastEarlyExitEncoder.from_pretrained(tmp_path, tokenizer=object())
    assert torch.equal(encoder(**batch).logits, expected)


@pytest.mark.parametrize("case", SAVED)
def test_checkpoints_with_exits(case: str, tmp_path: Any) -> None:
    config = ConsistentEEConfig(config_of(case), num_labels=3)
    model: Any = blown_up(ConsistentEEForSequenceClassification(config), seed=2)
    batch = batch_of(case, LENGTHS)
    model.save_pretrained(tmp_path)
    with torch.no_grad():
        loaded: Any = ConsistentEEForSequenceClassification.from_pretrained(tmp_path)
        expected = loaded(**batch).logits
        assert torch.equal(expected, model(**batch).logits)
    encoder = FastEarlyExitEncoder.from_pretrained(tmp_path, tokenizer=object(), threshold=1.0)
    assert encoder.num_layers == len(model.heads)
    found = encoder(**batch).logits
    assert (found - expected).abs().max() <= tolerance(case) * expected.abs().max()


@pytest.mark.parametrize("case", ["deberta-v3", "modernbert", "llama", "mpnet"])
def test_masks_with_holes_are_refused_where_attention_goes_by_place(case: str) -> None:
    encoder = FastEarlyExitEncoder(classifier(case))
    ids, mask = torch.full((2, 5), 7), torch.ones(2, 5, dtype=torch.int64)
    mask[1, 2] = 0
    with pytest.raises(ValueError, match=r"attention_mask: expected no zeros between .* in row 1"):
        encoder(ids, mask)
    with pytest.raises(ValueError, match="position_ids: expected none, as this model goes by"):
        encoder(ids, position_ids=torch.arange(5)[None])


@pytest.mark.parametrize("case", ["llama", "modernbert", "deberta-v3", "albert with groups"])
def test_shared_tables_stay_shared_when_they_are_moved(case: str) -> None:
    """Angles, buckets and the layers of ALBERT are in memory once, whatever the depth."""
    encoder = copy.deepcopy(FastEarlyExitEncoder(classifier(case)))
    encoder._move(torch.device("cpu"))
    forms = [block.attention.form for block in encoder._engine.stack.blocks]
    tables = {id(form.rotation.cos) for form in forms if form.rotation is not None}
    assert len(tables) == {"llama": 1, "modernbert": 2}.get(case, 0)
    if case == "albert with groups":  # the last layer's queries are apart
        blocks = encoder._engine.stack.blocks
        assert len({id(block.mlp.up.weight) for block in blocks[:-1]}) == 3


@pytest.mark.parametrize("case", ["modernbert", "llama"])
def test_the_first_layers_of_a_backbone(case: str, tmp_path: Any) -> None:
    """What its configuration lists by layer is cut with it; the last norm goes into each head."""
    backbone: Any = blown_up(AutoModel.from_config(config_of(case)), seed=1)
    backbone.save_pretrained(tmp_path / "backbone")
    model = ConsistentEEForSequenceClassification.from_backbone(
        tmp_path / "backbone", num_layers=2, num_labels=3
    ).eval()
    model.save_pretrained(tmp_path / "model")
    last_norm = backbone.get_submodule(FAMILIES[backbone.config.model_type].LAST_NORM or "")
    for head in model.heads:
        assert torch.equal(head.norm.weight, last_norm.weight)
    batch = batch_of(case, LENGTHS)
    with torch.no_grad():
        hidden = backbone(**batch, output_hidden_states=True).hidden_states[2]
        expected = model(**batch).logits
        pooled = last_norm(pool_rows(hidden, batch["attention_mask"]))
        state = torch.tanh(model.heads[-1].pooler(pooled))
        torch.testing.assert_close(model.heads[-1].classifier(state), expected)
    found = FastEarlyExitEncoder.from_pretrained(
        tmp_path / "model", tokenizer=object(), threshold=1.0
    )
    torch.testing.assert_close(found(**batch).logits, expected, atol=2e-5, rtol=2e-5)


def pool_rows(hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return (hidden * mask[..., None]).sum(dim=1) / mask.sum(dim=1, keepdim=True)
