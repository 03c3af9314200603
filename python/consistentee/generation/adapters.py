"""LoRA adapters on a trunk that is trained (arXiv 2106.09685), by peft.

``(W + 2 B A) x`` in place of ``W x`` in each linear layer, with W as it was; embedding, LM head and
norms stay too. At the end of a training ``W + 2 B A`` is written: the checkpoint is that
of a decoder without adapters.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from consistentee.generation.extra import needing
from consistentee_ext.generation.modeling import ConsistentEEForCausalLM

# Of all backbones.
_LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def add_adapters(model: ConsistentEEForCausalLM, rank: int) -> Any:
    """Give the trunk's linear layers adapters, in place; B is 0, so the model says what it said.

    Args:
        model: its trunk is trained.
        rank: r.

    Returns:
        peft's tuner; its ``merge_and_unload()`` leaves the trunk with the sums, in place.

    Raises:
        ValueError: the trunk is frozen, or peft is not installed.
    """
    if model.config.readout != "trunk":
        raise ValueError(
            "lora_rank: expected the readout 'trunk' beside it, got "
            f"{model.config.readout!r}, whose trunk stays as it was"
        )
    with needing("peft"):
        from peft import LoraConfig, LoraModel
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=list(_LAYERS))
    return LoraModel(model.backbone, config, "default")


def adapters_of(module: nn.Module) -> list[nn.Module]:
    """The modules that have the adapters' weights, all A and B, in a module's order."""
    return [m for n, m in module.named_modules() if n.endswith((".lora_A", ".lora_B"))]
