"""On Ray: a classifier for the batches of a dataset, and the server as a deployment."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import ray
import torch

from consistentee_ext.serving.arrow import ClassifyTable


class ClassifyBatch(ClassifyTable):
    """For `ray.data.Dataset.map_batches`: an actor's classifier, with a thread for each of the
    actor's CPUs.

        dataset.map_batches(
            ClassifyBatch,
            fn_constructor_kwargs={"checkpoint": "runs/mine", "text_columns": ["text"]},
            batch_format="pyarrow",
            batch_size=4096,
            num_cpus=4,
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=8),
        )

    Args:
        checkpoint: as of `ClassifyTable`; a folder must be there on every node.
        text_columns: as of `ClassifyTable`.
        options: as of `ClassifyTable`.
    """

    def __init__(
        self,
        checkpoint: str | os.PathLike[str],
        *,
        text_columns: Sequence[str] = ("text",),
        **options: Any,
    ) -> None:
        use_assigned_cpus()
        super().__init__(checkpoint, text_columns=text_columns, **options)


def use_assigned_cpus() -> None:
    """In an actor, give torch a thread for each of its CPUs; Ray itself limits nothing."""
    if ray.is_initialized() and ray.get_runtime_context().get_actor_id() is not None:
        cpus = ray.get_runtime_context().get_assigned_resources().get("CPU", 1)
        torch.set_num_threads(max(1, int(cpus)))


def deployment(
    checkpoint: str | os.PathLike[str], *, level: str | None = None, **limits: int
) -> Any:
    """The server of ``consistentee serve`` as a Ray Serve deployment; needs ``ray[serve]``.

    All its routes, each replica with a queue and a `Batcher` of its own:

        app = deployment("runs/mine").options(num_replicas=4, ray_actor_options={"num_cpus": 4})
        ray.serve.run(app.bind())

    Args:
        checkpoint: as for `FastEarlyExitEncoder.from_pretrained`; a folder must be there on every
            node.
        level: of the checkpoint's, at which it runs; default its threshold.
        limits: fields of `consistentee_ext.serving.service.Limits`.
    """
    from ray import serve

    from consistentee_ext.serving.service import MAX_CONCURRENT_REQUESTS, Limits

    checked = Limits(**limits)

    def build_app() -> Any:
        from consistentee_ext.serving.app import load_app

        use_assigned_cpus()
        return load_app(checkpoint, checked, level)

    return serve.deployment(
        serve.ingress(build_app)(),
        name="Classifier",
        # The queue that is bounded is the batcher's; Ray's would only hide requests from it.
        max_ongoing_requests=MAX_CONCURRENT_REQUESTS,
    )
