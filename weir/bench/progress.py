"""A progress bar of finished requests and tokens a second, drawn a few times a second."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from weir.sim.report import Record


class Bar:
    def __init__(self, drawn: Progress, total: int, title: str):
        self.drawn = drawn
        self.task = drawn.add_task(title, total=total, rate="")
        self.begin = time.perf_counter()
        self.tokens = 0

    def advance(self, records: Sequence[Record]) -> None:
        """One conversation, all its turns, has ended."""
        self.tokens += sum(record.output_tokens for record in records)
        rate = self.tokens / (time.perf_counter() - self.begin)
        self.drawn.update(self.task, advance=1, rate=f"{rate:,.0f} tok/s")


@contextmanager
def progress(total: int, title: str, hidden: bool = False) -> Iterator[Bar]:
    """On standard error, so that results can be piped; nothing where that is no terminal."""
    console = Console(file=sys.stderr)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
    )
    off = hidden or not console.is_terminal
    with Progress(*columns, console=console, disable=off, refresh_per_second=4) as drawn:
        yield Bar(drawn, total, title)
