"""Progress on stderr: a bar on a terminal and in a notebook, some lines in a log file."""

from __future__ import annotations

import io
import sys
from typing import Any

from tqdm.auto import tqdm as tqdm_of_the_screen
from tqdm.std import tqdm
from typing_extensions import override

LINE_SECONDS = 20.0  # between the lines of one stage


def progress_bar(total: int, name: str, unit: str, show: bool = True, done: int = 0) -> tqdm[Any]:
    """A bar with rate and time left. In a log file it is a line when the stage ends and, of a
    stage that is longer, one each `LINE_SECONDS`.

    Args:
        total: units of the stage.
        name: of the stage.
        unit: of what is counted.
        show: False shows nothing.
        done: units that an earlier run did.
    """
    options: dict[str, Any] = {"total": total, "desc": name, "unit": unit, "initial": done}
    if not show or sys.stderr.isatty() or "ipykernel" in sys.modules:
        bar: tqdm[Any] = tqdm_of_the_screen(disable=not show, **options)
        return bar
    return _Lines(
        mininterval=LINE_SECONDS,
        maxinterval=LINE_SECONDS,
        bar_format="{desc}: {n_fmt} of {total_fmt} in {elapsed}, {remaining} left{postfix}",
        file=io.StringIO(),  # what moves a terminal's cursor
        **options,
    )


class _Lines(tqdm):  # type: ignore[misc]  # tqdm has no types
    """A bar whose states are lines, the first one left out."""

    @override
    def display(self, *args: Any, **options: Any) -> bool:
        if self.n > self.initial:
            sys.stderr.write(f"{self}\n")
            sys.stderr.flush()
        return True
