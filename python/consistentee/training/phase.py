"""One phase of a training run: trained, resumed, or loaded from where an earlier start left it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from safetensors.torch import load_model, save_model
from torch import nn

from consistentee.atomic_files import Json
from consistentee.training.run_folder import RunFolder, read_log
from consistentee.training.trainer import PhaseTrainer

WEIGHTS_FILE = "model.safetensors"


def run_phase(
    run: RunFolder,
    name: str,
    kept: nn.Module,
    module: nn.Module,
    measure: Callable[[], Json],
    **options: Any,
) -> Json:
    """Train a phase, resume it from its last checkpoint, or load its result; return its log.

    Args:
        run: keeps checkpoints and results.
        name: of the phase.
        kept: the module whose weights are the phase's result; it is left with them.
        module: the module to train.
        measure: figures after the phase, ``dev`` in the log.
        options: of `PhaseTrainer`.
    """
    result = run.result(name)
    if result is not None:
        load_model(kept, result / WEIGHTS_FILE)
        return read_log(result)
    start = time.perf_counter()
    trainer = PhaseTrainer(phase=name, model=module, output_dir=run.checkpoints(name), **options)
    trainer.train(resume_from_checkpoint=run.last_checkpoint(name))
    seconds = time.perf_counter() - start
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    log = {"seconds": round(seconds, 1), "losses": losses, "dev": measure()}
    run.complete(name, lambda folder: save_model(kept, str(folder / WEIGHTS_FILE)), log)
    return log
