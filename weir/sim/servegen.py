"""ServeGen clients (Xiang et al., arXiv 2505.09999): a workload composed of its busiest senders.

Each client has its own distributions of lengths and, for each window of ten minutes, a rate and a
distribution of the times between its requests. So the sum has the bursts and shifts of each client.
"""

import heapq
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

from weir.errors import ConfigError
from weir.rows import read_rows
from weir.sim.workload import Item, Words, Workload

WINDOW = 600.0
"""Seconds of one window of a client's arrivals."""

Arrival = tuple[float, int, int]  # seconds, prompt tokens, output tokens


@dataclass(slots=True, frozen=True)
class Sender:
    """gamma: for each window, whether its intervals are gamma-distributed, else Weibull. windows:
    start, rate, shape and scale of each. levels: in percent, of the quantiles `inputs` and
    `outputs`, which are lengths in tokens."""

    gamma: list[bool]
    windows: list[tuple[float, float, float, float]]
    levels: list[float]
    inputs: list[float]
    outputs: list[float]

    def arrivals(self, random: Random, begin: float) -> Iterator[Arrival]:
        """Arrivals from `begin` on, in order. Prompt and answer lengths are independent."""
        for gamma, (start, rate, shape, scale) in zip(self.gamma, self.windows, strict=True):
            draw = random.gammavariate if gamma else random.weibullvariate
            first, second = (shape, scale) if gamma else (scale, shape)
            if start < begin or rate <= 0:
                continue
            now = start
            while (now := now + draw(first, second)) < start + WINDOW:
                asked = _quantile(self.levels, self.inputs, 100 * random.random())
                answered = _quantile(self.levels, self.outputs, 100 * random.random())
                yield now, max(1, round(asked)), max(1, round(answered))


def servegen(
    path: Path, words: Words, count: int, kind: str = "", begin: float | None = None
) -> Workload:
    """`count` requests of the clients of workload `kind` (default: the first in the file), from
    second `begin` of the trace on (default: the first window's start). Raises `ConfigError`."""
    lines = list(read_rows(path))
    try:
        known = sorted({line["workload"] for line in lines})
        kind = kind or lines[0]["workload"]
        senders = [_sender(line) for line in lines if line["workload"] == kind]
    except (KeyError, TypeError, ValueError, IndexError):
        raise ConfigError(
            f"{path}: not a file of ServeGen clients: each line needs workload, quantile_levels, "
            "input_tokens_quantiles, output_tokens_quantiles and windows"
        ) from None
    if not senders:
        raise ConfigError(f"{path}: has no workload {kind!r}; there are {', '.join(known)}")
    first = min(sender.windows[0][0] for sender in senders) if begin is None else begin
    streams = [
        sender.arrivals(Random(f"{words.seed}/{index}"), first)
        for index, sender in enumerate(senders)
    ]
    merged = list(islice(heapq.merge(*streams), count))
    start = merged[0][0] if merged else 0.0
    items = [Item(words.draw(asked), answered, now - start) for now, asked, answered in merged]
    return Workload(kind, items, timed=True)


def _sender(line: dict[str, Any]) -> Sender:
    windows = sorted(line["windows"])
    return Sender(
        gamma=[window[3] == "Gamma" for window in windows],
        windows=[(start, rate, shape, scale) for start, rate, _, _, shape, scale in windows],
        levels=line["quantile_levels"],
        inputs=line["input_tokens_quantiles"],
        outputs=line["output_tokens_quantiles"],
    )


def _quantile(levels: Sequence[float], values: Sequence[float], level: float) -> float:
    """Linear interpolation between the two nearest known levels."""
    at = min(bisect_right(levels, level), len(levels) - 1)
    low, high = levels[at - 1], levels[at]
    return values[at - 1] + (values[at] - values[at - 1]) * (level - low) / (high - low)
