"""The Trainer of one phase."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Sampler
from tqdm.std import tqdm
from transformers import (
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer import DEFAULT_PROGRESS_CALLBACK
from transformers.trainer_pt_utils import LengthGroupedSampler

from consistentee.atomic_files import naming_file
from consistentee.data.batch import Batch
from consistentee.measures.layer_outputs import MODEL_INPUTS
from consistentee.training.distributed import processes
from consistentee_ext.progress import progress_bar

# What the heads alone read: inputs of `PolicyNetwork`, and of the model in place of its tokens.
EXIT_INPUTS = ("states", "exit_logits", "alpha", "pooled_states")
# Of a decoder's rows: where the answer begins and ends.
ANSWER_INPUTS = ("prompt_lengths", "lengths")


class EpochSampler(Sampler[int]):
    """Rows in an order determined by seed and epoch; rows of similar length share a batch.

    Args:
        data: has a column ``length``; without one, any rows may share a batch.
        batch_size: rows of a step, over all processes.
        seed: of the order.
    """

    def __init__(self, data: Any, batch_size: int, seed: int) -> None:
        has_length = "length" in getattr(data, "column_names", ())
        self.lengths: list[int] = list(data["length"]) if has_length else [1] * len(data)
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next iteration, for its order."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        grouped = LengthGroupedSampler(self.batch_size, lengths=self.lengths, generator=generator)
        return iter(grouped)


class PhaseProgress(TrainerCallback):
    """One progress bar for each phase, with its name and its last loss."""

    def __init__(self, phase: str) -> None:
        self.phase = phase
        self.bar: tqdm[Any] | None = None  # None on all processes but one

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, *rest: Any, **options: Any
    ) -> None:
        """Open the bar."""
        if state.is_world_process_zero:
            self.bar = progress_bar(state.max_steps, self.phase, "step", done=state.global_step)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, *rest: Any, **options: Any
    ) -> None:
        """Move it."""
        if self.bar is not None:
            self.bar.update(state.global_step - self.bar.n)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **options: Any,
    ) -> None:
        """Show the last loss."""
        if self.bar is not None and logs and "loss" in logs:
            self.bar.set_postfix(loss=f"{logs['loss']:.4g}", refresh=False)

    def close(self) -> None:
        """Close the bar, which ends its line."""
        if self.bar is not None:
            self.bar.close()


class PhaseTrainer(Trainer):
    """A Trainer whose loss gets the whole batch and whose exits have their own learning rate.

    Linear decay after a short warm-up. It saves a checkpoint after each epoch and keeps the last.
    (Inside an epoch training could not be resumed exactly: the order of rows is not saved.)

    Processes share the rows of a step; the order of rows depends on seed and epoch only.

    Args:
        phase: the phase's name, for messages.
        loss: the phase's loss, of the model's output and the batch.
        output_dir: the folder of the checkpoints.
        epochs: passes over the rows.
        batch_size: rows of a step, over all processes.
        seed: of the order of rows and the dropout.
        head_learning_rate: peak learning rate of ``heads.*`` and of a decoder's ``exits.*``.
        learning_rate: peak learning rate of ``backbone.*``.
        bf16: run the model under bfloat16 autocast; weights and loss stay float32.
        recorded: the model reads states that were computed before. It is trained without dropout,
            because its inputs had none; not checkpointed, because the phase is short; and
            single-threaded, because its steps are too small to parallelise.
        alpha_range: of an adjustable model: each row of each batch gets an alpha drawn
            log-uniformly from this range, for policies and loss.
        sampler: has the rows of each epoch in their order; default an `EpochSampler`.
        options: of the Trainer: model, data, collator.
    """

    def __init__(
        self,
        *,
        phase: str,
        loss: Callable[[Any, Batch], Tensor],
        output_dir: Path,
        epochs: int,
        batch_size: int,
        seed: int,
        head_learning_rate: float,
        learning_rate: float = 0.0,
        bf16: bool = False,
        recorded: bool = False,
        alpha_range: Sequence[float] | None = None,
        sampler: Sampler[int] | None = None,
        **options: Any,
    ) -> None:
        shares = processes().num_processes
        if batch_size % shares:
            raise ValueError(
                f"batch_size: expected a multiple of {shares}, the processes, got {batch_size}"
            )
        arguments = TrainingArguments(
            output_dir=str(output_dir),
            num_train_epochs=epochs,
            per_device_train_batch_size=batch_size // shares,
            learning_rate=learning_rate,
            weight_decay=0.01,
            warmup_steps=0.06,
            seed=seed,
            logging_strategy="epoch",
            save_strategy="no" if recorded else "epoch",
            save_total_limit=1,
            remove_unused_columns=False,
            use_cpu=not torch.accelerator.is_available(),
            dataloader_pin_memory=torch.cuda.is_available(),
            report_to="none",
        )
        super().__init__(args=arguments, **options)
        self.progress = PhaseProgress(phase)
        self.pop_callback(DEFAULT_PROGRESS_CALLBACK)
        self.add_callback(self.progress)
        self.phase = phase
        self.loss = loss
        self.head_learning_rate = head_learning_rate
        self.bf16 = bf16
        self.recorded = recorded
        self.alpha_range = alpha_range
        self.sampler = sampler or EpochSampler(self.train_dataset, batch_size, seed)

    def train(self, *args: Any, **options: Any) -> Any:
        """Train the phase, on recorded states on one thread."""
        threads = torch.get_num_threads()
        torch.set_num_threads(1 if self.recorded else threads)
        try:
            return super().train(*args, **options)
        finally:
            torch.set_num_threads(threads)
            self.progress.close()

    def _save_checkpoint(self, *arguments: Any) -> None:
        with naming_file(self.args.output_dir or ""):
            super()._save_checkpoint(*arguments)

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        return self.sampler

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """An optimizer with learning rates for the backbone and for the heads."""
        module = self.model if model is None else model
        assert module is not None
        if self.optimizer is None:
            decayed = set(self.get_decay_parameter_names(module))
            rates = {
                "backbone.": self.args.learning_rate,
                "heads.": self.head_learning_rate,
                "exits.": self.head_learning_rate,
            }
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
        """The phase's loss of a batch.

        It has ``progress``, the share of steps done; and each row draws its alpha from a range, if
        there is one.

        Raises:
            RuntimeError: the loss is not finite.
        """
        model.train(not self.recorded)
        if self.alpha_range is not None:
            low, high = self.alpha_range
            drawn = torch.rand(len(inputs["labels"]), device=inputs["labels"].device)
            inputs = {**inputs, "alpha": low * (high / low) ** drawn}
        known = (*MODEL_INPUTS, *EXIT_INPUTS, *ANSWER_INPUTS)
        names = [name for name in known if name in inputs]
        with torch.autocast(self.args.device.type, torch.bfloat16, enabled=self.bf16):
            output = model(**{name: inputs[name] for name in names})
        progress = torch.tensor(self.state.global_step / self.state.max_steps)
        loss = self.loss(output, {**inputs, "progress": progress.to(self.args.device)})
        if not torch.isfinite(loss):
            raise RuntimeError(
                f"{self.phase}: expected a finite loss, got {loss.item()} at step "
                f"{self.state.global_step + 1}; checkpoints are kept in {self.args.output_dir}"
            )
        return (loss, output) if return_outputs else loss


def has_native_bf16() -> bool:
    """Whether the training device has instructions for bfloat16 matrix products."""
    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
