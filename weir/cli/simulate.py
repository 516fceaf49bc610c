"""Replay a workload in virtual time, with the scheduler, cache and policies that would serve it.

The report is that of `weir bench serve`. Arrivals are the trace's own, or at --request-rate with
gamma-distributed intervals (--burstiness 1: Poisson). No model is loaded; only its shape is read.
"""

import gc
import math
import sys
import time
from argparse import ArgumentParser, Namespace
from pathlib import Path

from weir.bench import datasets, reporting
from weir.sim import flags, plot
from weir.sim.flags import Scene, Vocabulary
from weir.sim.replay import replay
from weir.sim.report import Record, block, flat, measure
from weir.sim.workload import Workload

USAGE = "weir simulate [MODEL] [--hardware NAME] [OPTIONS]"


def add_arguments(parser: ArgumentParser) -> None:
    flags.add_arguments(parser)
    datasets.add_arguments(parser, 1000)
    reporting.add_arrivals(parser)
    group = reporting.add_report(parser)
    reporting.add_output(group)
    group.add_argument(
        "--plot", type=Path, metavar="FILE.png", help="draw latencies, load and steps"
    )


def run(options: Namespace) -> int:
    wanted = reporting.read(options)
    scene = flags.scene(options)
    workload = prepared(options, scene)
    timeline = plot.Timeline() if options.plot else None
    began = time.perf_counter()
    records, duration = simulate(scene, workload, timeline)
    taken = time.perf_counter() - began
    report = measure(records, duration, wanted.limits)
    rate = options.request_rate or math.inf
    print(block(report, rate=rate, metrics=wanted.metrics, percentiles=wanted.percentiles))
    print(
        f"simulated {duration:.1f} s in {taken:.1f} s, {duration / taken:.0f} times as fast",
        file=sys.stderr,
    )
    reporting.write(options.output_json, flat(report, wanted.metrics, wanted.percentiles))
    if timeline is not None:
        plot.save(plot.overview(report, timeline), options.plot)
    reporting.failures(records)
    return 0 if report.completed else 1


def prepared(options: Namespace, scene: Scene) -> Workload:
    """The workload that the flags describe, with prompts of random tokens, and arrivals set."""
    seed = scene.config.seed
    workload = datasets.make(options, lambda: Vocabulary(scene.spec.vocab), seed)
    return reporting.timed(options, workload, seed)


def simulate(
    scene: Scene, workload: Workload, timeline: plot.Timeline | None = None
) -> tuple[list[Record], float]:
    """Records and duration. Garbage is collected seldom meanwhile: the scheduler makes few
    reference cycles, and traversing its queues would take a third of the time."""
    fleet = scene.fleet()
    for replica in fleet:
        replica.watch = timeline
    thresholds = gc.get_threshold()
    gc.freeze()
    gc.set_threshold(500_000, 20, 100)
    try:
        return replay(workload, fleet, scene.router())
    finally:
        gc.set_threshold(*thresholds)
        gc.unfreeze()
