"""Plots a report: distributions of latency, and load over time. Needs matplotlib."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from weir.errors import ConfigError
from weir.sim.replay import Replica
from weir.sim.report import METRICS, Report


@dataclass(slots=True)
class Moment:
    """A replica when a step landed."""

    time: float
    running: int
    waiting: int
    tokens: int  # of the step


class Timeline:
    """Records steps: `replica.watch = timeline`. Raises `ConfigError` without matplotlib."""

    def __init__(self) -> None:
        library()  # fails before a simulation of minutes, not after
        self.moments: list[Moment] = []
        self._computed: dict[int, int] = {}  # replica → tokens of all its steps so far

    def __call__(self, replica: Replica) -> None:
        s, stats = replica.engine.scheduler, replica.engine.stats()
        waiting, computed = len(s.waiting), int(stats.step_tokens.sum)
        tokens = computed - self._computed.get(id(replica), 0)
        self._computed[id(replica)] = computed
        self.moments.append(Moment(replica.clock.time, len(s.running), waiting, tokens))


def library() -> Any:
    """pyplot, without a display. Raises `ConfigError` if matplotlib is missing."""
    try:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot
    except ImportError:
        raise ConfigError("a plot needs matplotlib: pip install 'weir-llm[plot]'") from None
    return pyplot


def canvas(rows: int = 1, columns: int = 1) -> Any:
    """(figure, axes). Raises `ConfigError` if matplotlib is missing."""
    size = columns * 6.0, rows * 3.6  # inches
    return library().subplots(rows, columns, figsize=size, layout="constrained")


def save(figure: Any, path: Path) -> None:
    """Write a PNG file. Raises `ConfigError` if it cannot be written."""
    try:
        figure.savefig(path, dpi=110, format="png")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror}") from None


def overview(report: Report, timeline: Timeline) -> Any:
    """A figure of four panels: two of latencies, the load and the steps over time."""
    figure, axes = canvas(2, 2)
    for axis, metrics in ((axes[0][0], ("ttft", "wait")), (axes[0][1], ("itl", "tpot"))):
        cumulative(axis, {METRICS[name][0]: report.metrics[name].sorted for name in metrics})
    moments = timeline.moments
    times = [moment.time for moment in moments]
    load, steps = axes[1]
    load.plot(times, [moment.running for moment in moments], label="running", lw=1)
    load.plot(times, [moment.waiting for moment in moments], label="waiting", lw=1)
    load.set(xlabel="seconds", ylabel="requests", ylim=(0, None))
    load.legend()
    steps.plot(times, [moment.tokens for moment in moments], ".", ms=2)
    steps.set(xlabel="seconds", ylabel="tokens a step", ylim=(0, None))
    return figure


def cumulative(axis: Any, series: Mapping[str, Sequence[float]]) -> None:
    """Plot cumulative distributions of values in milliseconds, which must ascend."""
    for label, values in series.items():
        count = len(values)
        axis.plot(values, [(at + 1) / count for at in range(count)], label=label, lw=1.5)
    axis.set(xlabel="milliseconds", ylabel="share", xscale="log", ylim=(0, 1))
    axis.grid(alpha=0.3)
    axis.legend()
