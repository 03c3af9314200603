"""Models of no family here, run as they are, against the Hugging Face model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.fake_device import Device
from support.family_cases import VOCABULARY, blown_up, sixteen_bit_errors
from support.generic_cases import BACKBONES, CASES, classifier, config_of

from consistentee.model.modeling import ConsistentEEForSequenceClassification
from consistentee_ext import FastEarlyExitEncoder
from consistentee_ext.configuration import ConsistentEEConfig
from consistentee_ext.engines.generic import GenericEngine

each_case = pytest.mark.parametrize("case", CASES)
LENGTHS = [5, 1, 17, 9, 30, 2]


def batch_of(case: str, lengths: list[int], seed: int = 0) -> dict[str, torch.Tensor]:
    """Padded with the padding id; one row has it inside and one at its end, ESM's mask is there."""
    config = config_of(case)
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(2, VOCABULARY, (len(lengths), max(lengths)), generator=generator)
    mask = (torch.arange(ids.shape[1]) < torch.tensor(lengths)[:, None]).long()
    ids = torch.where(mask == 1, ids, config.pad_token_id)
    longest = max(range(len(lengths)), key=lengths.__getitem__)
    ids[longest, 4] = config.pad_token_id
    ids[0, lengths[0] - 1] = config.pad_token_id
    batch = {"input_ids": ids, "attention_mask": mask}
    if case == "roc_bert":
        batch["token_type_ids"] = torch.randint(0, 2, ids.shape, generator=generator)
    return batch


def near(found: torch.Tensor, expected: torch.Tensor, most: float = 2e-5) -> None:
    assert (found - expected).abs().max() <= most * expected.abs().max()


@each_case
def test_logits_are_the_hugging_face_models(case: str, backend: str) -> None:
    model, batch = classifier(case), batch_of(case, LENGTHS)
    with torch.no_grad():
        expected = model(**batch).logits
    encoder = FastEarlyExitEncoder(model, backend=backend)
    assert isinstance(encoder._engine, GenericEngine)
    output = encoder(**batch)
    near(output.logits, expected)
    assert output.exit_layers.tolist() == [3] * len(LENGTHS)
    torch.testing.assert_close(output.exit_scores, output.logits.softmax(dim=-1).amax(dim=-1))


@each_case
def test_padding_on_the_left_changes_no_answer(case: str) -> None:
    """What the Hugging Face model gives of each row alone, without padding."""
    model, batch = classifier(case), batch_of(case, LENGTHS)
    left = {
        name: torch.stack([row.roll(-n) for row, n in zip(rows, LENGTHS, strict=True)])
        for name, rows in batch.items()
    }
    assert left["attention_mask"][:, -1].all()
    expected = []
    with torch.no_grad():
        for row, n in enumerate(LENGTHS):
            alone = {name: rows[row : row + 1, :n] for name, rows in batch.items()}
            expected.append(model(**alone).logits)
    near(FastEarlyExitEncoder(model)(**left).logits, torch.cat(expected))


@each_case
def test_a_row_does_not_depend_on_the_batch(case: str) -> None:
    encoder = FastEarlyExitEncoder(classifier(case))
    batch = batch_of(case, LENGTHS)
    together = encoder(**batch).logits
    order = torch.tensor([3, 0, 5, 4, 2, 1])
    other = encoder(**{name: rows[order] for name, rows in batch.items()}).logits
    near(other, together[order], 1e-6)
    for row in range(len(LENGTHS)):
        alone = encoder(**{name: rows[row : row + 1] for name, rows in batch.items()}).logits
        assert (alone[0] - together[row]).abs().max() <= 1e-6 * together.abs().max()


@pytest.mark.parametrize("case", [*CASES, *BACKBONES])
@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_exits_match_the_padded_model(case: str, pooling: str, backend: str) -> None:
    """A ConsistentEE classifier on the model: the same rows leave at the same layers."""
    config = ConsistentEEConfig(config_of(case), pooling=pooling, policy_input="both", num_labels=3)
    model: Any = blown_up(ConsistentEEForSequenceClassification(config), seed=2)
    model.set_attn_implementation("eager")  # others of transformers may lack the soft cap
    batch = batch_of(case, LENGTHS, seed=1)
    with torch.no_grad():
        output = model(**batch)
    probability = torch.cat((output.policy_logits.sigmoid(), torch.ones(len(LENGTHS), 1)), dim=1)
    threshold = probability[:, 0].median().item() + 1e-4  # about half of the rows stay
    leaves = probability > threshold
    leaves[:, -1] = True
    layers = leaves.int().argmax(dim=1)
    found = FastEarlyExitEncoder(model, backend=backend, threshold=threshold)(**batch)
    assert found.exit_layers.tolist() == (layers + 1).tolist()
    assert len(set(layers.tolist())) > 1
    near(found.logits, output.exit_logits[torch.arange(len(LENGTHS)), layers])


@each_case
def test_logits_are_the_same_on_the_path_of_a_device(
    case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("consistentee_ext.engines.load_layer_ops", lambda backend: Device())
    model, batch = classifier(case), batch_of(case, LENGTHS)
    with torch.no_grad():
        expected = model(**batch).logits
    near(FastEarlyExitEncoder(model, backend="torch")(**batch).logits, expected)


@each_case
def test_sixteen_bits_are_as_near_as_hugging_faces(case: str) -> None:
    """On average: of a few rows either may be the nearer one."""
    errors = torch.zeros(2)
    for seed in range(3):
        model, batch = classifier(case, seed), batch_of(case, [5, 9, 17, 30, 12, 20, 8, 3], seed)
        errors += sixteen_bit_errors(model, batch)
    assert errors[0] <= 1.5 * errors[1]


@pytest.mark.parametrize("case", ["esm, a table of positions", "gemma2", "roc_bert"])
def test_texts_are_packed_as_batches_are(case: str) -> None:
    encoder = FastEarlyExitEncoder(classifier(case))
    lengths = [7, 3, 12]
    batch = batch_of(case, lengths)
    rows = [ids[:n].tolist() for ids, n in zip(batch["input_ids"], lengths, strict=True)]

    def tokenizer(texts: list[str], **options: object) -> dict[str, list[list[int]]]:
        return {"input_ids": rows}

    found = encoder.predict(["a", "b", "c"], tokenizer).logits
    expected = encoder(batch["input_ids"], batch["attention_mask"]).logits
    near(found, expected)
    assert encoder.predict([], tokenizer).logits.shape == (0, 3)
    assert encoder(torch.zeros(0, 4, dtype=torch.int64)).logits.shape == (0, 3)


@pytest.mark.parametrize(
    ("case", "longest"),
    [
        ("esm, a table of positions", 38),  # counts from the padding id on
        ("gpt2", 40),
        ("llama, dynamic angles", 40),  # fixed up to here, beyond by the longest row
        ("phi3, long angles", 40),
    ],
)
def test_rows_up_to_the_last_position(case: str, longest: int) -> None:
    model = classifier(case)
    encoder = FastEarlyExitEncoder(model)
    assert encoder.max_positions == longest
    ids = torch.full((2, longest + 1), 5)
    ids[:, ::3] = 7
    with torch.no_grad():
        near(encoder(ids[:, :longest]).logits, model(ids[:, :longest]).logits)
    message = f"input_ids: expected at most {longest} positions, got {longest + 1}"
    with pytest.raises(ValueError, match=message):
        encoder(ids)
