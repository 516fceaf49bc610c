"""What it costs that nobody starves: shortest first under a stream of requests.

    python bench/aging.py [--rates 115 125 140] [--seconds 60] [--seed 1]

Llama-3.1-8B on the simulated H100 of bench/scheduling.py, lengths of answers to chat prompts, known
to the order. Learning to Rank, section 5: Poisson arrivals for a minute; a rate of `inf` asks 2,000
at once.
"""

import argparse
import gc
from dataclasses import replace

import scheduling_sets as sets
from scheduling import WIDE, Arm, table

from weir.sched.names import ranking
from weir.sim.report import Report
from weir.sim.workload import poisson

GRID = [
    *("threshold=200", "threshold=500", "threshold=1000", "threshold=400, patience=1"),
    "threshold=1000, quantum=1000000",
]
"""Options of `aging`; tokens that an overdue request has are 10 but in the last."""


def arms() -> list[Arm]:
    base = replace(WIDE, requests=256)
    policies = {"never": "shortest", **{options: f"aging(shortest, {options})" for options in GRID}}
    return [
        *(
            replace(base, name=name, ranking=lambda cache, policy=policy: ranking(policy, cache))
            for name, policy in policies.items()
        ),
        replace(base, name="FCFS"),
    ]


def row(name: str, report: Report, never: Report) -> list[object]:
    """Against never ageing: mean latency a token, and waits for any token, mean and longest."""
    ptl, wait = report.metrics["ptl"].mean, report.metrics["wait"]
    plain = never.metrics["wait"]
    cells = [name, ptl, 100 * (ptl / never.metrics["ptl"].mean - 1), wait.mean]
    cells += [wait.percentile(100) / 1000, plain.percentile(100) / wait.percentile(100)]
    return [*cells, report.metrics["tpot"].percentile(99), report.preemptions]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rates", nargs="+", type=float, default=[115.0, 125.0, 140.0])
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    gc.freeze()
    gc.set_threshold(500_000, 20, 100)
    head = ["overdue after", "PTL mean, ms", "more, %", "wait mean, ms", "longest, s"]
    head += ["times shorter", "TPOT P99, ms", "preempted"]
    for rate in options.rates:
        count = 2000 if rate == float("inf") else round(rate * options.seconds)
        load = poisson(sets.chats(count, options.seed), rate, 1.0, options.seed)
        reports = {arm.name: arm.run(load) for arm in arms()}
        rows = [row(name, report, reports["never"]) for name, report in reports.items()]
        table(f"{rate:g} requests/s, {count:,} requests", head, rows)


if __name__ == "__main__":
    main()
