"""Prompts, and how long the answers of models were: what a ranker is fitted to and judged by."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

from weir.errors import ConfigError
from weir.rows import find_rows, read_rows, read_table

FOLDS = 5
"""One prompt in so many is never trained on."""

VERSION = re.compile(r"(-preview|-\d{4}-\d\d-\d\d|-\d{4}|-\d{8}|@.*| \(.*)$")


class Answer(NamedTuple):
    prompt: int  # its place among the prompts
    tokens: float  # mean over samples


class Asked(NamedTuple):
    source: str
    model: str


@dataclass(slots=True)
class Lengths:
    prompts: list[str] = field(default_factory=list)
    sources: list[str] = field(default_factory=list)  # of each prompt
    answers: dict[Asked, list[Answer]] = field(default_factory=dict)

    def only(self, wanted: Collection[int]) -> Lengths:
        """The same prompts, with the answers to those wanted."""
        kept = {
            asked: [answer for answer in answers if answer.prompt in wanted]
            for asked, answers in self.answers.items()
        }
        kept = {asked: answers for asked, answers in kept.items() if answers}
        return Lengths(self.prompts, self.sources, kept)

    def split(self) -> tuple[Lengths, Lengths]:
        """Those to train on and those to test with: equal prompts fall on the same side."""
        tests = {place for place, prompt in enumerate(self.prompts) if fold(prompt) == 0}
        return self.only(set(range(len(self.prompts))) - tests), self.only(tests)

    def without(self, models: Collection[str]) -> Lengths:
        answers = {
            asked: found for asked, found in self.answers.items() if asked.model not in models
        }
        return Lengths(self.prompts, self.sources, answers)

    def families(self) -> dict[str, list[Answer]]:
        """What versions of one model answered to all sources: the queue of a server is mixed."""
        found: dict[str, list[Answer]] = defaultdict(list)
        for asked, answers in self.answers.items():
            found[family(asked.model)] += answers
        return dict(found)


def fold(prompt: str) -> int:
    digest = sha256(prompt.strip().encode("utf-8", "replace")).digest()
    return int.from_bytes(digest[:4], "big") % FOLDS


def family(model: str) -> str:
    """A model's name without dates and hosts: those of one family are comparable in length."""
    name = model.lower().replace("_", ".")
    while (shorter := VERSION.sub("", name)) != name:
        name = shorter
    return name


def read(path: Path, exclude: Collection[str] = ()) -> Lengths:
    """A folder of `prompts.jsonl` and `output_lengths.csv` joined by prompt_id, or JSON lines with
    prompt, output_tokens and, where known, model and source. Sources to `exclude` are left out.
    Raises `ConfigError` for files that hold no such thing."""
    found, samples = Lengths(), defaultdict[tuple[Asked, int], list[float]](list)
    places: dict[str, int] = {}
    for name, prompt, source, model, tokens in _folder(path) if path.is_dir() else _lines(path):
        if source in exclude:
            continue
        place = places.setdefault(name, len(places))
        if place == len(found.prompts):
            found.prompts.append(prompt)
            found.sources.append(source)
        samples[Asked(source, model), place].append(tokens)
    for (asked, place), tokens_of in samples.items():
        mean = sum(tokens_of) / len(tokens_of)
        found.answers.setdefault(asked, []).append(Answer(place, mean))
    if not found.answers:
        raise ConfigError(f"{path}: holds no lengths of answers")
    return found


Row = tuple[str, str, str, str, float]  # id, prompt, source, model, tokens


def _folder(path: Path) -> Iterator[Row]:
    prompts = {row.get("prompt_id"): row for row in read_rows(find_rows(path, "prompts.jsonl"))}
    file = find_rows(path, "output_lengths.csv")
    for number, row in enumerate(read_table(file), 2):
        try:
            asked: dict[str, Any] = prompts[row["prompt_id"]]
            yield (
                *(row["prompt_id"], str(asked["prompt"]), str(asked.get("source", ""))),
                *(row["model"], float(row["output_tokens"])),
            )
        except (KeyError, ValueError, TypeError):
            raise ConfigError(
                f"{file}: line {number}: expected prompt_id of a prompt, model and output_tokens"
            ) from None


def _lines(path: Path) -> Iterator[Row]:
    for number, row in enumerate(read_rows(path), 1):
        prompt, tokens = row.get("prompt"), row.get("output_tokens")
        if not isinstance(prompt, str) or not isinstance(tokens, int | float) or tokens < 0:
            raise ConfigError(
                f"{path}: line {number}: expected a prompt of text and a number of output_tokens"
            )
        source, model = str(row.get("source", "")), str(row.get("model", ""))
        yield f"{source}\n{prompt}", prompt, source, model, float(tokens)
