"""The command that serves a checkpoint."""

from __future__ import annotations

from typing import Annotated

from consistentee.cli.options import Checkpoint, Option


def serve(
    checkpoint: Checkpoint,
    host: Annotated[str, Option(help="Address to listen at; 0.0.0.0 for all.")] = "127.0.0.1",
    port: Annotated[int, Option(help="Port; 0 for a free one.")] = 8080,
    max_batch_tokens: Annotated[int, Option(help="Tokens of a batch.")] = 2048,
    max_queue_tokens: Annotated[
        int, Option(help="Tokens that may wait; above it, clients are told to come again.")
    ] = 32768,
    max_client_batch_size: Annotated[int, Option(help="Texts of a request.")] = 32,
    level: Annotated[
        str | None,
        Option(help="Level of `calibrate --level` to run at. Default: the checkpoint's threshold."),
    ] = None,
    workers: Annotated[int, Option(help="Processes, each with its copy of the weights.")] = 1,
) -> None:
    """Serve a classifier to clients of text-embeddings-inference, and vLLM's /classify."""
    try:
        import prometheus_client  # noqa: F401
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise RuntimeError(
            f"serve: expected the package {error.name}: pip install 'consistentee[serve]'"
        ) from None
    from consistentee_ext.serving.server import serve as run
    from consistentee_ext.serving.service import Limits

    limits = Limits(max_batch_tokens, max_queue_tokens, max_client_batch_size)
    run(checkpoint, host=host, port=port, limits=limits, level=level, workers=workers)
