"""The trained model against heads and losses computed by hand."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support.models import scramble, tiny_bert_config
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    BertModel,
    DistilBertConfig,
    MPNetConfig,
    RobertaConfig,
)

from consistentee.model.modeling import ConsistentEEForSequenceClassification
from consistentee_ext.configuration import ConsistentEEConfig
from consistentee_ext.ops.prediction import prediction_statistics

C, L, H = 3, 4, 32
IDS = torch.tensor([[2, 9, 8, 7, 3], [2, 9, 3, 0, 0], [2, 5, 6, 3, 0]])
MASK = (IDS != 0).long()


def build(**fields: Any) -> ConsistentEEForSequenceClassification:
    config = ConsistentEEConfig(backbone=tiny_bert_config(), num_labels=C, **fields)
    return scramble(ConsistentEEForSequenceClassification(config), seed=0)


@pytest.mark.parametrize("pooling", ["cls", "mean"])
@pytest.mark.parametrize("policy_input", ["state", "prediction", "both"])
def test_every_layer_against_a_head_by_hand(pooling, policy_input):
    """Each row alone, unpadded, through the trunk and, in single formulas, the heads."""
    model = build(pooling=pooling, policy_input=policy_input)
    output = model(input_ids=IDS, attention_mask=MASK)
    for row, (ids, mask) in enumerate(zip(IDS, MASK, strict=True)):
        hidden = model.backbone(ids[mask.bool()][None], output_hidden_states=True).hidden_states
        previous = torch.tensor([-1])
        for layer, head in enumerate(model.heads):
            tokens = hidden[layer + 1][0]
            pooled = tokens[0] if pooling == "cls" else tokens.mean(dim=0)
            state = torch.tanh(head.pooler.weight @ pooled + head.pooler.bias)
            logits = head.classifier.weight @ state + head.classifier.bias
            torch.testing.assert_close(output.exit_logits[row, layer], logits)
            if layer < L - 1:
                statistics = prediction_statistics(logits[None], previous)[0]
                seen = {"state": [state], "prediction": [statistics], "both": [state, statistics]}
                x = torch.cat(seen[policy_input])
                dense, score = head.policy.dense, head.policy.score
                inner = torch.nn.functional.gelu(dense.weight @ x + dense.bias)
                expected = (score.weight @ inner + score.bias)[0]
                torch.testing.assert_close(output.policy_logits[row, layer], expected)
            previous = logits.argmax()[None]
    assert torch.equal(output.logits, output.exit_logits[:, -1])
    assert output.policy_logits.shape == (3, L - 1)


def test_loss_is_depth_weighted():
    model, labels = build(), torch.tensor([0, 2, 1])
    output = model(input_ids=IDS, attention_mask=MASK, labels=labels)
    each = [
        torch.nn.functional.cross_entropy(output.exit_logits[:, layer], labels)
        for layer in range(L)
    ]
    expected = (1 * each[0] + 2 * each[1] + 3 * each[2] + 4 * each[3]) / 10
    torch.testing.assert_close(output.loss, expected)
    assert model(input_ids=IDS, attention_mask=MASK).loss is None


def test_pooled_states_stand_in_for_the_trunk():
    model = build()
    states = model.pooled_states(IDS, MASK)
    assert states.shape == (3, L, H)
    expected = model(input_ids=IDS, attention_mask=MASK).exit_logits
    assert torch.equal(model(pooled_states=states).exit_logits, expected)
    with pytest.raises(ValueError, match=r"^input_ids: "):
        model(attention_mask=MASK)


def test_segments_matter():
    model = build()
    plain = model(input_ids=IDS, attention_mask=MASK, token_type_ids=torch.zeros_like(IDS))
    pair = model(input_ids=IDS, attention_mask=MASK, token_type_ids=torch.ones_like(IDS))
    without = model(input_ids=IDS, attention_mask=MASK)
    assert torch.equal(plain.logits, without.logits)
    assert not torch.allclose(plain.logits, pair.logits)


def test_one_layer_has_no_policy():
    config = ConsistentEEConfig(backbone=tiny_bert_config(num_hidden_layers=1))
    output = ConsistentEEForSequenceClassification(config)(input_ids=IDS)
    assert output.policy_logits.shape == (3, 0)


def test_saved_model_is_loaded_to_the_bit(tmp_path):
    model = build(pooling="cls", policy_input="both", threshold=0.7, alpha=0.03)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert type(loaded) is ConsistentEEForSequenceClassification
    assert loaded.state_dict().keys() == model.state_dict().keys()
    for name, value in load_file(tmp_path / "model.safetensors").items():
        assert torch.equal(value, model.state_dict()[name])
        assert torch.equal(value, loaded.state_dict()[name])
    expected = model(input_ids=IDS, attention_mask=MASK).exit_logits
    assert torch.equal(loaded(input_ids=IDS, attention_mask=MASK).exit_logits, expected)


def test_config_file_names_what_the_engine_reads(tmp_path):
    fields = {"pooling": "cls", "policy_input": "state", "policy_size": 7, "threshold": 0.6}
    config = ConsistentEEConfig(
        backbone=tiny_bert_config(),
        id2label={0: "no", 1: "yes"},
        label2id={"no": 0, "yes": 1},
        **fields,
    )
    config.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["model_type"] == "consistentee"
    assert saved["backbone"]["model_type"] == "bert"
    assert saved["backbone"]["hidden_size"] == H
    assert saved["criterion"] == "policy"
    assert {name: saved[name] for name in fields} == fields
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert type(loaded) is ConsistentEEConfig
    assert loaded.backbone.to_dict() == config.backbone.to_dict()
    assert loaded.id2label == {0: "no", 1: "yes"}


def test_state_dict_names():
    names = build().state_dict().keys()
    head = {
        f"heads.{i}.{part}.{kind}"
        for i in range(L)
        for part in ("pooler", "classifier", "policy.dense", "policy.score")
        for kind in ("weight", "bias")
        if i < L - 1 or "policy" not in part
    }
    assert {name for name in names if not name.startswith("backbone.")} == head
    assert not any(name.startswith("backbone.pooler") for name in names)


def test_from_backbone_takes_its_weights_and_its_pooler(tmp_path):
    encoder = scramble(BertModel(tiny_bert_config()), seed=1)
    encoder.save_pretrained(tmp_path)
    model = ConsistentEEForSequenceClassification.from_backbone(tmp_path, num_labels=C)
    expected = encoder.state_dict()
    for name, value in model.backbone.state_dict().items():
        assert torch.equal(value, expected[name])
    for head in model.heads:
        assert torch.equal(head.pooler.weight, expected["pooler.dense.weight"])
        assert torch.equal(head.pooler.bias, expected["pooler.dense.bias"])
    assert str(tmp_path) not in model.config.to_json_string()
    with pytest.raises(ValueError, match=r"^backbone: .*no_such_folder"):
        ConsistentEEForSequenceClassification.from_backbone(tmp_path / "no_such_folder")


SMALL: dict[str, Any] = {
    "vocab_size": 40,
    "hidden_size": 16,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}


@pytest.mark.parametrize(
    "config",
    [
        RobertaConfig(**SMALL, num_hidden_layers=2, max_position_embeddings=20),
        MPNetConfig(**SMALL, num_hidden_layers=2, max_position_embeddings=20),
        DistilBertConfig(
            vocab_size=40, dim=16, n_heads=2, hidden_dim=32, n_layers=2, max_position_embeddings=18
        ),
    ],
    ids=lambda config: config.model_type,
)
def test_other_families(config, tmp_path):
    AutoModel.from_config(config).save_pretrained(tmp_path)
    model = ConsistentEEForSequenceClassification.from_backbone(tmp_path).eval()
    assert model.max_length == 18
    longest = torch.full((1, 18), 5)
    assert model(input_ids=longest).exit_logits.shape == (1, 2, 2)
    with pytest.raises((IndexError, RuntimeError)):
        model(input_ids=torch.full((1, 19), 5))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"pooling": "max"}, "pooling: expected one of ('cls', 'last', 'mean', 'pair'), got 'max'"),
        ({"policy_input": "x"}, "policy_input: expected one of"),
        ({"policy_size": 0}, "policy_size: expected at least 1, got 0"),
        ({"criterion": "luck"}, "criterion: expected one of"),
        ({"threshold": 0.0}, "threshold: expected a number in (0, 1], got 0.0"),
        ({"alpha": -0.1}, "alpha: expected a number of at least 0, got -0.1"),
        ({"alpha": float("nan")}, "alpha: expected a number of at least 0, got nan"),
        ({"num_labels": 1}, "metric: expected one of ('spearman',) in regression, got 'accuracy'"),
        ({"num_labels": 0}, "num_labels: expected at least 1, got 0"),
        ({"last_pooling": "max"}, "last_pooling: expected one of"),
        ({"last_activation": "silu"}, "last_activation: expected one of"),
        ({"backbone": {}}, "backbone: expected a dict with a 'model_type', got none"),
    ],
)
def test_a_field_outside_its_range_is_refused(fields, message):
    with pytest.raises(ValueError) as error:  # noqa: PT011
        ConsistentEEConfig(**fields)
    assert str(error.value).startswith(message)
