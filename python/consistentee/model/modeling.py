"""The trained model: a pretrained encoder with an exit head on every layer."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForSequenceClassification, PreTrainedModel
from transformers.utils import ModelOutput

from consistentee.model.loss import depth_weighted_loss, exit_loss
from consistentee_ext.configuration import ConsistentEEConfig
from consistentee_ext.exits.head import alpha_feature, build_exit_heads, start_pooler
from consistentee_ext.families import take_last_norm
from consistentee_ext.ops.prediction import answers, no_answers


@dataclass
class ConsistentEEOutput(ModelOutput):
    """What every layer says of B rows.

    Args:
        loss: ``[]``, the depth-weighted loss; None without labels.
        logits: ``[B, C]``, the last layer's.
        states: ``[B, L, H]``, what classifiers and policies read.
        exit_logits: ``[B, L, C]``.
        policy_logits: ``[B, L-1]``; the last layer, at which every row exits, has no policy.
    """

    loss: Tensor | None = None
    # Always set; the base class wants a default.
    logits: Tensor = None  # type: ignore[assignment]
    states: Tensor = None  # type: ignore[assignment]
    exit_logits: Tensor = None  # type: ignore[assignment]
    policy_logits: Tensor = None  # type: ignore[assignment]


class ConsistentEEForSequenceClassification(PreTrainedModel):
    """An encoder with an exit head on each layer: pooler, classifier, policy (arXiv 2312.11882).

    The trunk does not depend on the exits, so one pass gives every layer's logits and policy: what
    training needs. To exit early for real, hand the model to
    `consistentee_ext.FastEarlyExitEncoder`.
    """

    config_class = ConsistentEEConfig
    config: ConsistentEEConfig
    base_model_prefix = "backbone"
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True

    def __init__(self, config: ConsistentEEConfig) -> None:
        super().__init__(config)
        assert config.num_labels is not None  # by the configuration
        self.num_labels = config.num_labels
        self.backbone = AutoModel.from_config(config.backbone)
        self.backbone.pooler = None  # each head has its own
        last_norm = take_last_norm(self.backbone)
        self.heads = build_exit_heads(config, last_norm, _dropout(config.backbone))
        self.post_init()

    @property
    def max_length(self) -> int:
        """The longest row, in tokens: ``max_tokens``, where the encoder has that many positions."""
        limit = max_length_of(self.backbone)
        return min(limit, self.config.max_tokens or limit)

    @classmethod
    def from_backbone(
        cls, name_or_path: str | os.PathLike[str], num_layers: int | None = None, **config: Any
    ) -> ConsistentEEForSequenceClassification:
        """A classifier to be trained, on a pretrained encoder.

        Every head's pooler starts as the encoder's own, where it has one; classifiers and policies
        start at random.

        Args:
            name_or_path: a Hugging Face folder or hub name with safetensors weights.
            num_layers: keeps the first layers alone; default all.
            config: fields of `ConsistentEEConfig`.

        Raises:
            ValueError: there is no such encoder, it cannot be cut, or a field is outside its range.
        """
        with finding_backbone(name_or_path, "a pretrained encoder with safetensors weights"):
            encoder = AutoModel.from_pretrained(
                name_or_path, dtype=torch.float32, use_safetensors=True, trust_remote_code=False
            )
        encoder.config.name_or_path = ""  # a local path is no part of a model
        if num_layers is not None:
            _keep_layers(encoder.config, num_layers)
        model = cls(ConsistentEEConfig(backbone=encoder.config, **config))
        pooler = getattr(encoder, "pooler", None)
        if pooler is not None:
            # BERT's pooler keeps its Linear in `dense`, ALBERT's is one.
            dense = getattr(pooler, "dense", pooler).state_dict()
            heads: list[Any] = list(model.heads)
            for head in heads:
                start_pooler(head, dense)
            encoder.pooler = None
        last_norm = take_last_norm(encoder)
        for head in model.heads:
            if last_norm is not None:
                head.get_submodule("norm").load_state_dict(last_norm.state_dict())
        weights, wanted = encoder.state_dict(), model.backbone.state_dict()
        for name, value in wanted.items():
            if weights[name].shape != value.shape:  # ESM's head of contacts reads all layers
                raise ValueError(
                    f"num_layers: expected None, as {name} of {type(encoder).__name__} has a size "
                    f"by all layers, got {num_layers}"
                )
        model.backbone.load_state_dict({name: weights[name] for name in wanted})
        return model

    def save_pretrained(self, *arguments: Any, **options: Any) -> None:
        """As transformers' own, with the names that the modules have.

        By default it writes those of a family's first checkpoints, where they differ (GTE); readers
        of a ConsistentEE checkpoint know the modules alone.
        """
        super().save_pretrained(*arguments, **({"save_original_format": False} | options))

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        labels: Tensor | None = None,
        pooled_states: Tensor | None = None,
        alpha: Tensor | float | None = None,
    ) -> ConsistentEEOutput:
        """Logits and policy logits of every layer.

        Args:
            input_ids: ``[B, S]`` int64.
            attention_mask: ``[B, S]``, 1 for a token, 0 for padding; all ones by default.
            token_type_ids: ``[B, S]`` int64, the segment of each token.
            labels: ``[B]``, int64 classes or floating numbers, or ``[B, C]`` floating, 1 for a
                label of the row's set; with them the output has a loss.
            pooled_states: from `pooled_states`, in place of the three inputs.
            alpha: of an adjustable model, the price of a layer, a number or ``[B]``; default the
                configuration's.
        """
        if pooled_states is None:
            if input_ids is None:
                raise ValueError("input_ids: expected these or pooled_states, got neither")
            pooled_states = self.pooled_states(input_ids, attention_mask, token_type_ids)
        rows = pooled_states.shape[0]
        feature = self.alpha_feature(rows, alpha)
        states: list[Tensor] = []
        exit_logits: list[Tensor] = []
        policy_logits: list[Tensor] = []
        multi_label = self.config.multi_label
        previous = no_answers(pooled_states.new_zeros(rows, self.num_labels), multi_label)
        for head, pooled in zip(self.heads, pooled_states.unbind(dim=1), strict=True):
            output = head(pooled[:, : self._pooled_size(head)], previous, feature)
            previous = answers(output.logits, multi_label)
            states.append(output.state)
            exit_logits.append(output.logits)
            if output.policy_logits is not None:
                policy_logits.append(output.policy_logits)
        # Losses and exit decisions are float32 in whatever dtype the layers run.
        stacked = torch.stack(exit_logits, dim=1).float()
        loss = None
        if labels is not None:
            loss = depth_weighted_loss(exit_loss(stacked, labels, self.config.label_std))
        return ConsistentEEOutput(
            loss=loss,
            logits=stacked[:, -1],
            states=torch.stack(states, dim=1),
            exit_logits=stacked,
            policy_logits=stack_policies(policy_logits, stacked),
        )

    def alpha_feature(self, rows: int, alpha: Tensor | float | None = None) -> Tensor | None:
        """What adjustable policies read of alpha, ``[B]``; None where policies are not."""
        if self.config.alpha_range is None:
            return None
        asked: Any = self.config.alpha if alpha is None else alpha
        return alpha_feature(asked, self.config.alpha_range).to(self.device).expand(rows)

    def pooled_states(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
    ) -> Tensor:
        """One vector a row and layer, ``[B, L, H]``: all that the heads read of the trunk.

        Where heads compare two texts ``[B, L, 2H]``, with zeros behind what other heads read.
        """
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
        if token_type_ids is not None:
            inputs["token_type_ids"] = token_type_ids
        hidden_states = self.backbone(**inputs, output_hidden_states=True).hidden_states[1:]
        dtype = hidden_states[0].dtype
        weights = {
            pooling: self.pooling_weights(pooling, input_ids, attention_mask).to(dtype)
            for pooling in set(self.config.poolings)
        }
        layers = zip(self.config.poolings, hidden_states, strict=True)
        pooled = [torch.bmm(weights[pooling], hidden).flatten(1) for pooling, hidden in layers]
        width = self.pooled_size
        return torch.stack([nn.functional.pad(p, (0, width - p.shape[1])) for p in pooled], dim=1)

    def pooling_weights(self, pooling: str, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """What each token weighs in what a head of this pooling reads.

        ``[B, 1, S]``, or ``[B, 2, S]`` for two texts.
        """
        if pooling != "pair":
            return pooling_weights(attention_mask, pooling)[:, None]
        assert self.config.separator_id is not None  # by the configuration
        first, second = segment_masks(input_ids, attention_mask, self.config.separator_id)
        return torch.stack([pooling_weights(mask, "mean") for mask in (first, second)], dim=1)

    @property
    def pooled_size(self) -> int:
        """Numbers that are pooled of a row and layer."""
        return max(self._pooled_size(head) for head in self.heads)

    def _pooled_size(self, head: Any) -> int:
        size: int = self.config.backbone.hidden_size
        return 2 * size if head.pair else size


def _keep_layers(config: Any, number: int) -> None:
    """Cut an encoder's configuration to its first layers, and what it lists by layer."""
    most = config.num_hidden_layers
    if not 1 <= number <= most:
        raise ValueError(f"num_layers: expected 1 to {most}, got {number}")
    for name, value in vars(config).items():
        if name.startswith("layer") and isinstance(value, list) and len(value) == most:
            setattr(config, name, value[:number])
    config.num_hidden_layers = number


def max_length_of(encoder: Any) -> int:
    """The longest row an encoder has positions for, in tokens."""
    positions: int = encoder.config.max_position_embeddings
    embeddings = getattr(encoder, "embeddings", None)
    embeddings = getattr(embeddings, "position_embeddings", None)
    # RoBERTa and its kin count positions from the padding id on.
    padding = getattr(embeddings, "padding_idx", None)
    return positions if padding is None else positions - padding - 1


def _dropout(backbone: Any) -> float:
    """The encoder's probability of dropping a hidden state, by the names that families give it."""
    names = ("hidden_dropout_prob", "dropout", "classifier_dropout")
    return next((getattr(backbone, name) or 0.0 for name in names if hasattr(backbone, name)), 0.0)


@contextmanager
def finding_backbone(name_or_path: str | os.PathLike[str], expected: str) -> Iterator[None]:
    """Say in one line that the encoder the block loads is not what was expected.

    Raises:
        ValueError: the block could not load it.
    """
    try:
        yield
    except (OSError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(f"backbone: expected {expected}, got {name_or_path} ({reason})") from error


def pooling_weights(attention_mask: Tensor, pooling: str) -> Tensor:
    """What each token weighs in its row's pooled state; a row sums to 1.

    From a 0/1 mask ``[B, S]`` to ``[B, S]`` float32.
    """
    width = attention_mask.shape[1]
    if pooling == "cls":
        return nn.functional.one_hot(attention_mask.argmax(dim=1), width).float()
    if pooling == "last":
        last = width - 1 - attention_mask.flip(1).argmax(dim=1)
        return nn.functional.one_hot(last, width).float()
    return attention_mask / attention_mask.sum(dim=1, keepdim=True)


def segment_masks(
    input_ids: Tensor, attention_mask: Tensor, separator_id: int
) -> tuple[Tensor, Tensor]:
    """Masks of the first text of each row, with the separator behind it, and of the second.

    All are ``[B, S]``. Where a row has one text, both are of it.
    """
    separators = (input_ids == separator_id) & (attention_mask == 1)
    second = (separators.cumsum(dim=1) - separators.long() > 0) & (attention_mask == 1)
    alone = ~second.any(dim=1, keepdim=True)
    first = (attention_mask == 1) & ~second
    return first.long(), torch.where(alone, first, second).long()


def stack_policies(policy_logits: list[Tensor], like: Tensor) -> Tensor:
    """The policies' logits side by side, ``[B, L-1]`` float32; one layer alone has no policy."""
    if not policy_logits:
        return like.new_zeros(len(like), 0)
    return torch.stack(policy_logits, dim=1).float()


AutoModelForSequenceClassification.register(
    ConsistentEEConfig, ConsistentEEForSequenceClassification
)
