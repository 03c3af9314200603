"""The configuration of a ConsistentEE decoder: the one definition of its config.json."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from transformers import AutoConfig, PreTrainedConfig

from consistentee_ext.criteria import check_threshold
from consistentee_ext.names import DECODER_POLICIES, READOUTS

# The model_type of the configurations whose modules `consistentee_ext.generation.trunk` runs.
BACKBONES = ("llama", "qwen2", "qwen3", "mistral", "gemma", "gemma3_text")
# The RoPE types whose angles depend on the position alone, not on the length of the row.
_ROPE_TYPES = ("default", "linear", "llama3", "yarn")
_FEW_LAYERS = 12  # below these the multiples of 5 are too few exits


class ConsistentEECausalLMConfig(PreTrainedConfig):
    """Configuration of a ConsistentEE decoder.

    Args:
        backbone: configuration of the decoder, or a dict with its ``model_type``, one of
            `BACKBONES`; Llama by default.
        exit_layers: the layers behind which a token may leave, in 1..L-1; default
            `default_exit_layers`.
        readout: how the shared LM head reads an exit: through a ``"translator"`` of its own, the
            trunk staying as it was, or as it stands (``"trunk"``), the trunk being fine-tuned.
        rank: r of a translator.
        policy: ``"mlp"``, a hidden layer of `policy_size`, or ``"linear"``, the paper's.
        policy_size: width of that hidden layer.
        threshold: the exit probability above which a token leaves, in (0, 1].
        alpha: the price of a layer, in accuracy, for the easiest token.
        kwargs: the fields common to all configurations, such as ``eos_token_id``.

    Raises:
        ValueError: a field is outside its range.
    """

    model_type = "consistentee_causal_lm"
    sub_configs: ClassVar = {"backbone": AutoConfig}

    def __init__(
        self,
        backbone: PreTrainedConfig | dict[str, Any] | None = None,
        exit_layers: Sequence[int] | None = None,
        readout: str = "translator",
        rank: int = 64,
        policy: str = "mlp",
        policy_size: int = 32,
        threshold: float = 0.5,
        alpha: float = 0.02,
        **kwargs: Any,
    ) -> None:
        if backbone is None:
            backbone = {"model_type": "llama"}
        if isinstance(backbone, dict):
            if "model_type" not in backbone:
                raise ValueError("backbone: expected a dict with a 'model_type', got none")
            backbone = AutoConfig.for_model(**backbone)
        check_backbone(backbone)
        num_layers: int = backbone.num_hidden_layers
        if readout not in READOUTS:
            raise ValueError(f"readout: expected one of {READOUTS}, got {readout!r}")
        if policy not in DECODER_POLICIES:
            raise ValueError(f"policy: expected one of {DECODER_POLICIES}, got {policy!r}")
        for name, size in (("rank", rank), ("policy_size", policy_size)):
            if size < 1:
                raise ValueError(f"{name}: expected at least 1, got {size}")
        check_threshold(threshold)
        if not alpha >= 0.0:
            raise ValueError(f"alpha: expected a number of at least 0, got {alpha}")
        self.backbone = backbone
        self.exit_layers = _check_exit_layers(exit_layers, num_layers)
        self.readout = readout
        self.rank = rank
        self.policy = policy
        self.policy_size = policy_size
        self.threshold = threshold
        self.alpha = alpha
        # What generation asks of a configuration is the decoder's, unless it is given.
        for name in ("eos_token_id", "pad_token_id", "bos_token_id"):
            kwargs.setdefault(name, getattr(backbone, name, None))
        kwargs["tie_word_embeddings"] = backbone.tie_word_embeddings
        super().__init__(**kwargs)

    @property
    def num_layers(self) -> int:
        """L."""
        layers: int = self.backbone.num_hidden_layers
        return layers

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """The tokens that end a text."""
        ids = self.eos_token_id
        if ids is None:
            return ()
        return (ids,) if isinstance(ids, int) else tuple(ids)


def default_exit_layers(num_layers: int) -> list[int]:
    """The multiples of 5 from L/4 to below L; of fewer than 12 layers those of ``L // 4``."""
    step = 5 if num_layers >= _FEW_LAYERS else max(1, num_layers // 4)
    return [layer for layer in range(step, num_layers, step) if 4 * layer >= num_layers]


def check_backbone(config: Any) -> None:
    """Raise ValueError unless this configuration is of a decoder whose layers can be run one by
    one.
    """
    kind = getattr(config, "model_type", None)
    if kind not in BACKBONES:
        raise ValueError(
            f"backbone: expected a decoder of model_type {', '.join(BACKBONES)}, got {kind!r}"
        )
    if getattr(config, "use_bidirectional_attention", False):
        raise ValueError("backbone: expected causal attention, got use_bidirectional_attention")
    rotary = config.rope_parameters
    for parameters in [rotary] if "rope_type" in rotary else rotary.values():
        rope_type = parameters["rope_type"] if parameters else "default"
        if rope_type not in _ROPE_TYPES:
            raise ValueError(
                f"backbone: expected rotary positions of {_ROPE_TYPES}, got {rope_type!r}"
            )


def _check_exit_layers(layers: Sequence[int] | None, num_layers: int) -> list[int]:
    chosen = default_exit_layers(num_layers) if layers is None else sorted(set(layers))
    if not chosen or not 1 <= chosen[0] <= chosen[-1] < num_layers:
        raise ValueError(
            f"exit_layers: expected layers in 1..{num_layers - 1}, below the last, got "
            f"{list(chosen if layers is None else layers)}"
        )
    return chosen


AutoConfig.register(ConsistentEECausalLMConfig.model_type, ConsistentEECausalLMConfig)
