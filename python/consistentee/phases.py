"""One training phase: its loss, and a Trainer whose heads have their own learning rate."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments

from consistentee.modeling import ConsistentEEOutput
from consistentee.objective import (
    depth_weighted_cross_entropy,
    error_probability,
    exact_objective,
    exit_cross_entropy,
    exit_log_distribution,
    hardness_guided_reward,
)

MODEL_INPUTS = ("input_ids", "attention_mask", "token_type_ids", "pooled_states")

Loss = Callable[[ConsistentEEOutput, Mapping[str, Tensor]], Tensor]


class PhaseTrainer(Trainer):
    """A Trainer whose loss sees the whole batch and whose heads have their own learning rate.

    Linear decay after a short warm-up; one checkpoint an epoch, the last one kept. (A checkpoint
    inside an epoch could not be continued exactly: the order of the rows is not part of it.)

    Args:
        loss: the phase's loss.
        output_dir: the folder of the checkpoints.
        epochs: passes over the rows.
        batch_size: rows of a step.
        seed: of the order of rows and the dropout.
        head_learning_rate: peak learning rate of ``heads.*``.
        learning_rate: peak learning rate of ``backbone.*``.
        dropout: False trains without it.
        checkpoint: False for a phase too short to be worth going on with.
        bf16: compute the model in bfloat16 where autocast does; weights and loss stay float32.
        options: of the Trainer: the model, the data, the collator.
    """

    def __init__(
        self,
        *,
        loss: Loss,
        output_dir: Path,
        epochs: int,
        batch_size: int,
        seed: int,
        head_learning_rate: float,
        learning_rate: float = 0.0,
        dropout: bool = True,
        checkpoint: bool = True,
        bf16: bool = False,
        **options: Any,
    ) -> None:
        has_length = "length" in getattr(options["train_dataset"], "column_names", ())
        arguments = TrainingArguments(
            output_dir=str(output_dir),
            num_train_epochs=epochs,
            per_device_train_batch_size=batch_size,
            learning_rate=learning_rate,
            weight_decay=0.01,
            warmup_steps=0.06,
            seed=seed,
            train_sampling_strategy="group_by_length" if has_length else "random",
            logging_strategy="epoch",
            save_strategy="epoch" if checkpoint else "no",
            save_total_limit=1,
            remove_unused_columns=False,
            dataloader_pin_memory=torch.cuda.is_available(),
            report_to="none",
        )
        super().__init__(args=arguments, **options)
        self.loss = loss
        self.head_learning_rate = head_learning_rate
        self.dropout = dropout
        self.bf16 = bf16

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        module = self.model if model is None else model
        assert module is not None
        if self.optimizer is None:
            decayed = set(self.get_decay_parameter_names(module))
            rates = {"backbone.": self.args.learning_rate, "heads.": self.head_learning_rate}
            trained = [(n, p) for n, p in module.named_parameters() if p.requires_grad]
            groups = [
                {
                    "params": [
                        p for n, p in trained if n.startswith(part) and (n in decayed) == decay
                    ],
                    "lr": rate,
                    "weight_decay": self.args.weight_decay if decay else 0.0,
                }
                for part, rate in rates.items()
                for decay in (True, False)
            ]
            optimizer, options = self.get_optimizer_cls_and_kwargs(self.args)
            self.optimizer = optimizer([group for group in groups if group["params"]], **options)
        return self.optimizer

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        model.train(self.dropout)
        with torch.autocast(self.args.device.type, torch.bfloat16, enabled=self.bf16):
            output = model(**{name: inputs[name] for name in MODEL_INPUTS if name in inputs})
        loss = self.loss(output, inputs)
        return (loss, output) if return_outputs else loss


def trunk_loss(output: ConsistentEEOutput, batch: Mapping[str, Tensor]) -> Tensor:
    """Phase 1: the depth-weighted cross-entropy of the classifiers."""
    return depth_weighted_cross_entropy(output.exit_logits, batch["labels"])


def policy_loss(output: ConsistentEEOutput, batch: Mapping[str, Tensor], alpha: float) -> Tensor:
    """Phase 2: the exact objective of the policies, on the probability of a wrong answer.

    Cross-entropy in its place has no bound: a few confident mistakes of the deep layers outweigh
    what these get right, and the policies leave too early.
    """
    cross_entropy = exit_cross_entropy(output.exit_logits, batch["labels"])
    loss = error_probability(cross_entropy.detach())
    reward = hardness_guided_reward(loss, batch["memorized_layer"], alpha)
    return exact_objective(exit_log_distribution(output.policy_logits), reward)


def joint_loss(output: ConsistentEEOutput, batch: Mapping[str, Tensor], alpha: float) -> Tensor:
    """Phase 3: `policy_loss`, and each classifier's cross-entropy on the rows that leave at it."""
    cross_entropy = exit_cross_entropy(output.exit_logits, batch["labels"])
    exits = exit_log_distribution(output.policy_logits.detach())
    return policy_loss(output, batch, alpha) + exact_objective(exits, -cross_entropy)


def has_native_bf16() -> bool:
    """Whether the device that trains has instructions for products of bfloat16 matrices."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
