"""The command line. Errors are one line on stderr and exit code 2."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from consistentee.cli.checkpoints import calibrate, evaluate, predict, report
from consistentee.cli.exits import add_exits
from consistentee.cli.generation import generate
from consistentee.cli.options import Option, Seed, expand_options
from consistentee.cli.serving import serve
from consistentee.cli.tables import show_metrics
from consistentee.cli.training import compare, train

INTERRUPTED = 130

app = typer.Typer(
    help="Early exit: train, add exits, calibrate, evaluate, compare, report, predict, generate, "
    "serve.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def demo(
    output: Annotated[Path, Option(help="Folder to work in.")] = Path("runs/demo"),
    seed: Seed = 42,
) -> None:
    """Train, evaluate and report on docstrings found on this machine; no download."""
    from consistentee.demo import run_demo

    metrics = run_demo(output, seed)
    show_metrics("Which library is a docstring from?", metrics)
    Console().print(f"report: {output / 'report.html'}")


def backends() -> None:
    """List the backends that can run here, and why the others cannot."""
    from consistentee_ext import backend_report

    Console().print(backend_report(), highlight=False)


COMMANDS = (
    train,
    add_exits,
    calibrate,
    evaluate,
    compare,
    report,
    predict,
    generate,
    serve,
    demo,
    backends,
)
for command in COMMANDS:
    app.command()(expand_options(command))


def main() -> None:
    """Run the command line; an expected failure prints one line and exits with code 2."""
    try:
        code = app(standalone_mode=False)
    except (typer.TyperException, ValueError, TypeError, OSError, RuntimeError) as error:
        text = error.format_message() if isinstance(error, typer.TyperException) else str(error)
        line = " ".join(text.split()) or type(error).__name__
        sys.stderr.write(f"consistentee: {line}\n")
        code = 2
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    if code == INTERRUPTED:  # as typer returns it too
        sys.stderr.write("consistentee: interrupted\n")
    sys.exit(code)
