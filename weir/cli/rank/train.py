"""Fit a ranker to prompts and the lengths of their answers.

DATA is a folder with prompts.jsonl and output_lengths.csv, or JSON lines with prompt, output_tokens
and, if known, model and source, as `weir rank collect` writes them. One prompt in five, and all
answers of the models to --hold, are set aside for `weir rank eval`.
"""

import shlex
import sys
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from weir.bench.datasets import positive
from weir.cli.rank import add_data
from weir.errors import ConfigError
from weir.progress import progress
from weir.ranker import files, lengths, train_light, train_transformer
from weir.ranker.files import Ranker
from weir.ranker.lengths import Lengths
from weir.ranker.train import HEADS, Recipe
from weir.ranker.train_transformer import LAYERS, RECIPE

USAGE = "weir rank train DATA -o FILE [OPTIONS]"

LIGHT = "light"
RIDGE = "ridge"
TAUGHT = "taught"
AVERAGED = ["listmle", "pairwise", "pointwise", RIDGE]


def add_arguments(parser: ArgumentParser) -> None:
    add_data(parser)
    add = parser.add_argument
    add("--output", "-o", type=Path, required=True, metavar="FILE", help="the ranker")
    add(
        "--backbone", default=LIGHT, metavar="NAME",
        help="light, or a small Llama, such as smollm2-135m (light)",
    )  # fmt: skip
    add("--layers", type=positive, default=LAYERS, metavar="N", help=f"of the Llama ({LAYERS})")
    add(
        "--head", nargs="+", choices=[*HEADS, RIDGE, TAUGHT], metavar="LOSS",
        help=f"{', '.join([*HEADS, RIDGE])}, or {TAUGHT}, by what {train_light.TEACHER} sees in a "
        f"prompt; of several, one light network each, averaged ({' '.join(AVERAGED)}; of a Llama "
        f"{RIDGE}, which leaves its layers as they are)",
    )  # fmt: skip
    steps = f"({Recipe().steps}, of a Llama {RECIPE.steps})"
    add("--steps", type=positive, metavar="N", help=steps)
    add("--seed", type=int, default=0, metavar="N", help="(0)")
    add("--quiet", action="store_true", help="no progress bar")


def run(options: Namespace) -> int:
    data = lengths.read(options.data, options.exclude).without(options.hold)
    known, _ = data.split()
    with files.writing(options.output, "ab"):  # fails before training, not after
        pass
    began = time.perf_counter()
    recipes = _recipes(options)
    with progress(_steps(options, recipes, known), "steps", hidden=options.quiet) as bar:
        ranker = _fitted(options, known, recipes, lambda step: bar.advance(1))
    held = shlex.join(options.hold) or "no model"
    ranker.about = f"{recipes}; {options.data.name} without {held}"
    ranker.save(options.output)
    seconds, size = time.perf_counter() - began, options.output.stat().st_size
    print(f"trained in {seconds:.0f} s, {size / 2**20:.1f} MiB: {options.output}", file=sys.stderr)
    return 0


def _recipes(options: Namespace) -> list[Recipe]:
    light = options.backbone == LIGHT
    heads = options.head or (AVERAGED if light else [RIDGE])
    if not light and len(heads) > 1:
        raise ConfigError("--head: only light networks are averaged: give one loss")
    if "classification" in heads and len(heads) > 1:
        raise ConfigError("--head: classification gives classes, not scores: use it alone")
    if TAUGHT in heads and not light:
        raise ConfigError(f"--head: {TAUGHT} is for light rankers: of a Llama take {RIDGE}")
    heads = sorted(dict.fromkeys(heads), key=TAUGHT.__ne__)  # TAUGHT comes first
    base = Recipe() if light else RECIPE
    steps = options.steps or base.steps
    return [replace(base, head=head, steps=steps, seed=options.seed) for head in heads]


def _steps(options: Namespace, recipes: list[Recipe], known: Lengths) -> int:
    """How often training reports progress: once per step, and per prompt that a Llama reads."""
    answered = {answer.prompt for answers in known.answers.values() for answer in answers}
    steps = {RIDGE: 0, TAUGHT: min(train_transformer.MOST, len(answered))}
    if options.backbone != LIGHT:
        steps[RIDGE] = steps[TAUGHT]
    return sum(steps.get(recipe.head, recipe.steps) for recipe in recipes)


def _fitted(
    options: Namespace, known: Lengths, recipes: list[Recipe], watch: Callable[[int], None]
) -> Ranker:
    if options.backbone != LIGHT:
        model, layers = options.backbone, options.layers
        kind = train_transformer.ridge if recipes[0].head == RIDGE else train_transformer.train
        return kind(known, recipes[0], watch, model, layers)
    kinds = {RIDGE: train_light.ridge, TAUGHT: train_light.taught}
    parts = [kinds.get(one.head, train_light.train)(known, one, watch) for one in recipes]
    return parts[0] if len(parts) == 1 else train_light.combine(parts, known, recipes[0])
