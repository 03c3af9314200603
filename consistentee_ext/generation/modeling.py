"""The model in a decoder's checkpoint: a decoder with its LM head, and exits."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn import ModuleDict
from transformers import AutoModelForCausalLM, PreTrainedModel

from consistentee_ext.generation.configuration import ConsistentEECausalLMConfig
from consistentee_ext.generation.exits import DecoderExit, Translator
from consistentee_ext.generation.trunk import Trunk


class ConsistentEEForCausalLM(PreTrainedModel):
    """A decoder whose tokens may leave behind some of its layers (arXiv 2312.11882).

    A token that leaves at layer l is predicted by the one LM head from
    ``s_l = N_f(translate_l(h_l))``. In ``model.safetensors`` the decoder has the names it has alone
    behind ``backbone.``, the exit of layer l is ``exits.{l}.``.

    Calling it runs the decoder at full depth. `consistentee_ext.generation.reference` generates
    with exits.
    """

    config_class = ConsistentEECausalLMConfig
    config: ConsistentEECausalLMConfig
    base_model_prefix = "backbone"
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True

    def __init__(self, config: ConsistentEECausalLMConfig) -> None:
        super().__init__(config)
        self.backbone = AutoModelForCausalLM.from_config(config.backbone)
        self.exits = ModuleDict(
            {
                str(layer): DecoderExit(
                    config.backbone.hidden_size,
                    config.rank if config.readout == "translator" else None,
                    config.policy_size if config.policy == "mlp" else None,
                )
                for layer in config.exit_layers
            }
        )
        self.trunk = Trunk(self.backbone)
        self.post_init()

    def _init_weights(self, module: Any) -> None:
        super()._init_weights(module)
        if isinstance(module, Translator):
            module.reset_parameters()

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, **options: Any
    ) -> Any:
        """What the decoder says at full depth; arguments and result are its own."""
        return self.backbone(input_ids=input_ids, attention_mask=attention_mask, **options)

    def readout(self, layer: int, hidden: Tensor) -> Tensor:
        """What policy and LM head read of hidden states behind a layer.

        ``N_f(translate_l(h))`` at an exit, ``N_f(h)`` at the last layer, ``[..., H]``.
        """
        if layer == self.config.num_layers:
            return self.trunk.last_norm(hidden)
        return self.trunk.last_norm(self.exit(layer).translate(hidden))

    def logits(self, state: Tensor) -> Tensor:
        """The LM head's logits ``[..., V]`` of states from `readout`."""
        return self.trunk.logits(state)

    def decide(self, layer: int, state: Tensor) -> Tensor:
        """The policy's logit ``[...]`` at an exit layer, of states from `readout`."""
        return self.exit(layer).decide(state)

    def exit(self, layer: int) -> DecoderExit:
        """The exit of a layer that has one."""
        found: DecoderExit = self.exits.get_submodule(str(layer))  # type: ignore[assignment]
        return found


AutoModelForCausalLM.register(ConsistentEECausalLMConfig, ConsistentEEForCausalLM)
