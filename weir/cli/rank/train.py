"""Fit a light ranker to prompts and the lengths of their answers.

DATA is a folder with prompts.jsonl and output_lengths.csv, or JSON lines with prompt, output_tokens
and, where known, model and source, as `weir rank collect` writes them. One prompt in five is kept
aside, and every answer of the models to --hold; `weir rank eval` judges on those.
"""

from __future__ import annotations

import shlex
import sys
import time
from argparse import ArgumentParser, Namespace
from pathlib import Path

from weir.bench.datasets import positive
from weir.errors import ConfigError
from weir.progress import progress
from weir.ranker import lengths
from weir.ranker.train import HEADS, Recipe, combine, train

USAGE = "weir rank train DATA -o FILE [OPTIONS]"


def add_data(parser: ArgumentParser) -> None:
    add = parser.add_argument
    add("data", type=Path, metavar="DATA", help="folder or JSON lines")
    add("--exclude", nargs="+", default=["bbh"], metavar="SOURCE", help="leave out (bbh)")
    add("--hold", nargs="+", default=[], metavar="MODEL", help="models never trained on (none)")


def add_arguments(parser: ArgumentParser) -> None:
    add_data(parser)
    add = parser.add_argument
    recipe = Recipe()
    add("--output", "-o", type=Path, required=True, metavar="FILE", help="the ranker")
    add(
        "--head", nargs="+", choices=HEADS, default=["listmle", "pairwise", "pointwise"],
        help="losses; of several, one network each, averaged (listmle pairwise pointwise)",
    )  # fmt: skip
    add("--steps", type=positive, default=recipe.steps, metavar="N", help=f"({recipe.steps})")
    add("--seed", type=int, default=recipe.seed, metavar="N", help=f"({recipe.seed})")
    add("--quiet", action="store_true", help="no progress bar")


def run(options: Namespace) -> int:
    data = lengths.read(options.data, options.exclude).without(options.hold)
    known, _ = data.split()
    if "classification" in options.head and len(options.head) > 1:
        raise ConfigError("--head: classification gives classes, not scores: use it alone")
    recipes = [Recipe(head=h, steps=options.steps, seed=options.seed) for h in options.head]
    began = time.perf_counter()
    with progress(options.steps * len(recipes), "steps", hidden=options.quiet) as bar:
        parts = [train(known, recipe, lambda step: bar.advance(1)) for recipe in recipes]
    ranker = parts[0] if len(parts) == 1 else combine(parts, known, recipes[0])
    held = shlex.join(options.hold) or "no model"
    ranker.about = f"{recipes}; {options.data.name} without {held}"
    ranker.save(options.output)
    seconds, size = time.perf_counter() - began, options.output.stat().st_size
    print(f"trained in {seconds:.0f} s, {size / 2**20:.1f} MiB: {options.output}", file=sys.stderr)
    return 0
