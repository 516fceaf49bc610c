"""Kendall's tau-b of rankers on prompts they were not trained on, by source, as Markdown.

For comparison, the table has the tau-b of the prompts' lengths, and of the lengths of other models'
answers to the same prompts: of one model on average, and of all together, which is about the best
that a prompt allows. Several rankers, such as one for each --head of `weir rank train`, are
compared in columns.
"""

import sys
import time
from argparse import ArgumentParser, Namespace
from pathlib import Path

from weir.cli.rank import add_data
from weir.errors import ConfigError
from weir.ranker import files, lengths
from weir.ranker.evaluate import LEAST, evaluate, summary, table

USAGE = "weir rank eval DATA [--ranker FILE ...] [--hold MODEL ...] [OPTIONS]"


def add_arguments(parser: ArgumentParser) -> None:
    add_data(parser)
    add = parser.add_argument
    add(
        "--ranker", nargs="+", type=Path, default=[], metavar="FILE",
        help="default: the one that ships with Weir",
    )  # fmt: skip
    add(
        "--together", nargs="+", default=[], metavar="SOURCE",
        help="also rank these as one, as a queue mixes them (all)",
    )  # fmt: skip
    add("--by-model", action="store_true", help="a row for every model, not for every source")
    add("--all-prompts", action="store_true", help="those that were trained on as well")


def run(options: Namespace) -> int:
    """Print the table. With --hold, only the answers of those models are evaluated."""
    data = lengths.read(options.data, options.exclude)
    if not options.all_prompts:
        _, data = data.split()
    if options.hold:
        others = {asked.model for asked in data.answers} - set(options.hold)
        held = data.without(others)
        if not held.answers:
            raise ConfigError(f"--hold: no answers of {', '.join(options.hold)} in {options.data}")
    rankers = {path.stem: files.load(path) for path in options.ranker}
    if not data.answers:
        raise ConfigError(
            f"{options.data}: none of its prompts was kept aside, as one in five is on average: "
            "give more answers, or look at --all-prompts"
        )
    asked = sorted({answer.prompt for answers in data.answers.values() for answer in answers})
    prompts = [data.prompts[place] for place in asked]
    scores = {}
    for name, ranker in (rankers or {"shipped": files.shipped()}).items():
        began = time.perf_counter()
        found = dict(zip(asked, ranker.score(prompts).tolist(), strict=True))
        each = (time.perf_counter() - began) / len(prompts)
        print(f"{name}: {1000 * each:.2f} ms a prompt", file=sys.stderr)
        scores[name] = [found.get(place, 0.0) for place in range(len(data.prompts))]
    rows = evaluate(data, scores, options.together)
    if options.hold:
        families = {lengths.family(model) for model in options.hold}
        rows = [row for row in rows if row.model in {*options.hold, *families}]
    if not rows:
        raise ConfigError(
            f"{options.data}: no model answered {LEAST} of the prompts kept aside, one in five, "
            "and fewer say nothing: give more answers, or look at --all-prompts"
        )
    print(table(rows if options.by_model else summary(rows)))
    return 0
