"""A progress bar of things done and tokens a second, on standard error."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn


class Bar:
    def __init__(self, drawn: Progress, total: int, title: str, done: int):
        self._drawn = drawn
        self._task = drawn.add_task(title, total=total, completed=done, rate="")
        self._begin = time.perf_counter()
        self._read = self._written = 0

    def advance(self, done: int, read: int = 0, written: int = 0) -> None:
        """`done` more things, `read` prompt tokens and `written` generated ones."""
        self._read += read
        self._written += written
        seconds = max(time.perf_counter() - self._begin, 1e-6)
        rate = f"in {self._read / seconds:,.0f}, out {self._written / seconds:,.0f} tok/s"
        rate = rate if self._read or self._written else ""
        self._drawn.update(self._task, advance=done, rate=rate)


@contextmanager
def progress(total: int, title: str, *, done: int = 0, hidden: bool = False) -> Iterator[Bar]:
    """Nothing is drawn when `hidden` or where standard error is no terminal."""
    console = Console(file=sys.stderr)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
    )
    off = hidden or not console.is_terminal
    with Progress(
        *columns,
        console=console,
        disable=off,
        refresh_per_second=4,
        redirect_stdout=sys.stdout.isatty(),  # else what is printed to a file would be drawn
    ) as drawn:
        yield Bar(drawn, total, title, done)
