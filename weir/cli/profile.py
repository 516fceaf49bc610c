"""Measure how long steps take on this machine, and save the result for the latency target.

Runs a grid of steps on the real engine: prompt chunks by length and start, decodes by number and
context. With --check, also runs random mixed steps and shows the error of each cost model on them.
"""

import statistics
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path

import weir
from weir import build
from weir.bench.datasets import natural, positive
from weir.cost import profile
from weir.cost.hardware import find
from weir.cost.roofline import Roofline
from weir.cost.table import Grid, Table
from weir.cost.target import best_budget
from weir.cost.work import Work
from weir.folders import cache_folder
from weir.options import add_config, config
from weir.progress import progress
from weir.sim.flags import weight_bytes
from weir.sim.shapes import shape

USAGE = "weir profile [MODEL] [OPTIONS]"


def add_arguments(parser: ArgumentParser) -> None:
    group = parser.add_argument_group("profile")
    add = group.add_argument
    add("--repeats", type=positive, default=3, metavar="N", help="runs of every step (3)")
    add("--check", type=natural, default=0, metavar="N", help="random steps to test models on (0)")
    add(
        "--hardware", metavar="NAME",
        help="preset whose roofline is checked too; default: cpu on a CPU, else none",
    )  # fmt: skip
    add("--output", type=Path, metavar="FILE", help="default: the user's cache")
    add("--quiet", action="store_true", help="no progress bar")
    add_config(parser, serves=False)


def run(options: Namespace) -> int:
    settings = config(options)
    engine = build.engine(settings)
    try:
        key = profile.identity(engine.info, settings.model, weir.__version__)
        works = list(profile.mixtures(engine.capacity, options.check))
        steps = (options.repeats + 1) * (len(profile.cells(engine.capacity)) + len(works))
        with progress(steps, "steps", hidden=options.quiet) as bar:
            table, measured = profile.profile(
                engine.executor, key, options.repeats, works, lambda: bar.advance(1)
            )
    finally:
        engine.close()
    file = options.output or profile.path(cache_folder("profiles"), key)
    profile.save(table, file)
    print("\n".join(["chunks of prompts: tokens by start, ms", *lines(table.prompts)]))
    print("\n".join(["decodes: sequences by context, ms", *lines(table.decodes)]))
    budget = best_budget(table, engine.capacity.tokens)
    print(f"prompt tokens a step, where no latency target bounds it: {budget}")
    if works:
        models: dict[str, Table | Roofline] = {"table": table}
        hardware = options.hardware or ("cpu" if engine.info["device"] == "cpu" else "")
        if hardware:
            spec, device = shape(settings.model), find(hardware)
            size = weight_bytes(settings, spec, hardware)
            models["roofline"] = Roofline(spec, device, size)
        for name, model in models.items():
            print(f"{name}: {error(model, works, measured)}")
    print(f"saved to {file}")
    return 0


def lines(grid: Grid) -> list[str]:
    head = " " * 8 + "".join(f"{column:>10}" for column in grid.columns)
    rows = zip(grid.rows, grid.seconds, strict=True)
    return [head] + [
        f"{row:>8}" + "".join(f"{1000 * value:>10.2f}" for value in values) for row, values in rows
    ]


def error(model: Table | Roofline, works: Sequence[Work], measured: Sequence[float]) -> str:
    """The distribution of a cost model's relative error over measured steps."""
    pairs = zip(works, measured, strict=True)
    errors = sorted(abs(model.seconds(work) / seconds - 1) for work, seconds in pairs)
    ninth = errors[min(len(errors) - 1, int(0.9 * len(errors)))]
    return f"median error {statistics.median(errors):.1%}, 90th percentile {ninth:.1%}"
