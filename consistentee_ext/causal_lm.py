"""A causal language model that answers yes or no, as a classifier."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING
from transformers.modeling_layers import GenericForSequenceClassification


def classifier_from_causal_lm(
    model: nn.Module, true_token_id: int, false_token_id: int
) -> nn.Module:
    """A Hugging Face sequence classifier with one score, the log-odds of two next tokens.

    ``score = logit[true_token_id] - logit[false_token_id]`` of a row's last token: a product with
    one row, the difference of two of the language model's head. So rerankers such as
    Qwen3-Reranker are scored, and ``sigmoid(score)`` is the probability of the first token among
    the two. The classifier shares the model's weights.

    Args:
        model: a ``...ForCausalLM`` of transformers in evaluation mode, such as
            ``Qwen3ForCausalLM``. It is read, never changed.
        true_token_id: of ``yes``, say.
        false_token_id: of ``no``, say.

    Raises:
        ValueError: there is no classifier of the model's type, an id is none of the vocabulary's,
            or the logits are not a product of the last hidden state (a soft cap, a scale).
    """
    config: Any = copy.deepcopy(getattr(model, "config", None))
    kind: Any = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING.get(type(config), type(None))
    generating: Any = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), ())
    if not isinstance(model, generating) or not issubclass(kind, GenericForSequenceClassification):
        raise ValueError(
            "model: expected a causal language model whose type has a classifier of the last "
            f"token in transformers, got {type(model).__name__}"
        )
    lm: Any = model
    head = lm.get_output_embeddings()
    for name, number in (("true_token_id", true_token_id), ("false_token_id", false_token_id)):
        if not 0 <= number < len(head.weight):
            raise ValueError(f"{name}: expected an id below {len(head.weight)}, got {number}")
    config.num_labels = 1
    with torch.device("meta"):
        classifier: nn.Module = kind(config)
    setattr(classifier, kind.base_model_prefix, lm.base_model)
    score = classifier.score = _difference(head, true_token_id, false_token_id)
    _check(lm, score, true_token_id, false_token_id)
    return classifier.train(lm.training)


def _difference(head: nn.Linear, first: int, second: int) -> nn.Linear:
    """The product that gives how much one output of another is above a second."""

    def subtract(values: Tensor) -> nn.Parameter:
        return nn.Parameter((values[first] - values[second])[None].detach())

    weight = subtract(head.weight)
    out = nn.Linear(weight.shape[1], 1, bias=head.bias is not None, device="meta")
    out.weight = weight
    if head.bias is not None:
        out.bias = subtract(head.bias)
    return out


def _check(lm: Any, score: nn.Linear, first: int, second: int) -> None:
    """Raise ValueError unless the model's logits are its head's product and nothing else."""
    ids = torch.tensor([[first, second]], device=score.weight.device)
    with torch.no_grad():
        logits = lm(ids).logits[0, -1].float()
        found = score(lm.base_model(ids).last_hidden_state[0, -1]).float()
    expected = logits[first] - logits[second]
    most = {torch.float32: 1e-4}.get(score.weight.dtype, 5e-2) * logits.abs().max()
    if not (found - expected).abs() <= most:
        raise ValueError(
            "model: expected logits that are a product of the last hidden state, got a difference "
            f"of {expected.item():.4g} in place of {found.item():.4g}"
        )
