"""A model that computes something else than its family's file reads is refused by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from support.models import random_batch, tiny_bert_config, tiny_classifier, tiny_model
from torch import Tensor, nn
from transformers import BertForSequenceClassification, BertForTokenClassification

from consistentee_ext import FastEarlyExitEncoder


class Scaled(BertForSequenceClassification):
    """Its logits are halved."""

    def forward(self, *arguments: object, **options: object) -> object:
        output = super().forward(*arguments, **options)
        output.logits = output.logits / 2
        return output


class Named(BertForSequenceClassification):
    """Another name alone."""


class Adapted(nn.Module):
    """A product and a small one beside it, as an adapter that is not merged."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base
        self.down, self.up = nn.Linear(32, 2), nn.Linear(2, 32)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.up(self.down(x))


def adapt(model: BertForSequenceClassification) -> None:
    attention = model.bert.encoder.layer[1].attention.self
    attention.query = Adapted(attention.query)


def other_activation(model: Any) -> None:
    model.bert.pooler.activation = nn.ReLU()


def two_layers(model: Any) -> None:
    model.classifier = nn.Sequential(nn.Linear(32, 8), nn.ReLU(), nn.Linear(8, 3))


def no_norm(model: BertForSequenceClassification) -> None:
    model.bert.encoder.layer[0].output.LayerNorm = nn.Identity()


def hook(model: BertForSequenceClassification) -> None:
    model.bert.encoder.layer[2].register_forward_hook(lambda module, inputs, output: output)


def patch(model: Any) -> None:
    model.bert.pooler.forward = lambda hidden: hidden[:, 1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (adapt, r"model\.bert\.encoder\.layer\.1\.attention\.self\.query: .* got Adapted, whose"),
        (other_activation, "expected the pooler's activation to be a Tanh, got ReLU"),
        (two_layers, "expected the classifier to be a Linear, got Sequential"),
        (no_norm, "expected every norm to be a LayerNorm, got Identity"),
        (hook, r"model\.bert\.encoder\.layer\.2: expected no forward hooks"),
        (patch, r"model\.bert\.pooler: expected the forward of its class, got one set"),
    ],
)
def test_a_changed_model_is_refused(
    change: Callable[[BertForSequenceClassification], None], message: str
) -> None:
    model = tiny_classifier()
    change(model)
    with pytest.raises(ValueError, match=message) as raised:
        FastEarlyExitEncoder(model)
    assert "\n" not in str(raised.value)


def test_an_adapter_of_peft_is_refused_until_it_is_merged() -> None:
    model = tiny_classifier()
    config = LoraConfig(task_type="SEQ_CLS", r=2, init_lora_weights=False, target_modules=["query"])
    adapted: Any = get_peft_model(model, config)
    batch = random_batch([5, 9])
    adapted.eval()
    with torch.no_grad():
        expected = adapted(**batch).logits
    with pytest.raises(ValueError, match=r"got PeftModelFor.*; merge its adapters first"):
        FastEarlyExitEncoder(adapted)
    # the model itself holds the adapters' modules as well
    with pytest.raises(ValueError, match=r"query: .* whose forward is that of peft.*; merge"):
        FastEarlyExitEncoder(model)
    found = FastEarlyExitEncoder(adapted.merge_and_unload())(**batch).logits
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_a_subclass_with_a_forward_of_its_own_is_refused() -> None:
    config = tiny_bert_config(num_labels=3)
    with pytest.raises(ValueError, match=r"model: expected a module of transformers .* got Scaled"):
        FastEarlyExitEncoder(Scaled(config))
    with pytest.raises(ValueError, match="model: expected a ConsistentEE classifier or a Hugging"):
        FastEarlyExitEncoder(BertForTokenClassification(config))


def test_a_classifier_without_bias_is_taken() -> None:
    model, batch = tiny_classifier(), random_batch([5, 9])
    model.classifier = nn.Linear(32, 3, bias=False)
    with torch.no_grad():
        expected = model(**batch).logits
    found = FastEarlyExitEncoder(model)(**batch).logits
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_a_subclass_with_another_name_alone_is_taken() -> None:
    model, batch = Named(tiny_bert_config(num_labels=3)).eval(), random_batch([5, 9])
    with torch.no_grad():
        expected = model(**batch).logits
    found = FastEarlyExitEncoder(model)(**batch).logits
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_changed_backbones_of_our_own_classifiers_are_refused() -> None:
    model = tiny_model()
    attention = model.backbone.encoder.layer[0].attention.self
    attention.value = Adapted(attention.value)
    with pytest.raises(ValueError, match=r"model\.backbone\.encoder\.layer\.0.*got Adapted"):
        FastEarlyExitEncoder(model)
