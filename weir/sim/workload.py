"""Workloads: prompts, arrival times and answer lengths, from public traces, files or at random.

A loader turns a published format into items for the bench client, the offline benchmark and the
simulator. All is determined by the arguments and a seed. Files may be gzipped.
"""

import csv
import json
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from random import Random
from typing import Any, Protocol

from weir.errors import ConfigError
from weir.rows import find_rows, open_text, read_rows

MOONCAKE_BLOCK = 512
"""Tokens per hash id of a Mooncake trace (Qin et al., FAST 2025)."""

COLUMNS = {
    "arrival": ("arrival_s", "TIMESTAMP", "Timestamp"),
    "prompt": ("prompt_tokens", "ContextTokens", "Request tokens"),
    "output": ("output_tokens", "GeneratedTokens", "Response tokens"),
}
"""The columns of known CSV traces: Azure's, in two forms, and BurstGPT's."""


class Tokenizer(Protocol):
    special: frozenset[int]

    @property
    def vocab(self) -> int: ...

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]: ...

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = True) -> str: ...


@dataclass(slots=True, frozen=True)
class Item:
    """One conversation, usually with a single turn."""

    prompt: str | list[int]
    output: int  # tokens to generate in each turn
    arrival: float = 0.0  # seconds after the start
    turns: tuple[str, ...] = ()  # the user's next messages, each sent after the previous answer


@dataclass(slots=True, frozen=True)
class Workload:
    name: str
    items: list[Item]
    timed: bool = False  # arrivals are those of a trace


class Words:
    """Random prompts of exact lengths, without special tokens."""

    def __init__(self, tokenizer: Tokenizer, seed: int):
        self.ids = [i for i in range(tokenizer.vocab) if i not in tokenizer.special]
        self.random = Random(seed)
        self.seed = seed

    def draw(self, length: int) -> list[int]:
        return self.random.choices(self.ids, k=length)

    def block(self, name: object, length: int) -> list[int]:
        """Random tokens, determined by name, seed and length."""
        return Random(f"{self.seed}/{name}").choices(self.ids, k=length)


def poisson(workload: Workload, rate: float, burstiness: float, seed: int) -> Workload:
    """The items arriving at `rate` per second, in gamma-distributed intervals of shape
    `burstiness`: 1 is a Poisson process, less is burstier. An infinite rate sends all at once."""
    random, now, items = Random(seed), 0.0, []
    for item in workload.items:
        items.append(replace(item, arrival=now))
        if rate != math.inf:
            now += random.gammavariate(burstiness, 1 / (rate * burstiness))
    return replace(workload, items=items, timed=False)


def paced(workload: Workload, speed: float) -> Workload:
    """A trace replayed `speed` times as fast."""
    items = [replace(item, arrival=item.arrival / speed) for item in workload.items]
    return replace(workload, items=items)


def lengthened(workload: Workload, output: int) -> Workload:
    """The workload with `output` tokens in every answer."""
    items = [replace(item, output=output) for item in workload.items]
    return replace(workload, items=items)


def random(
    words: Words, count: int, input: int, output: int, spread: float = 0.0, prefix: int = 0
) -> Workload:
    """Unrelated prompts after a prefix of `prefix` tokens. Lengths are uniform between (1 - spread)
    and (1 + spread) times `input` and `output`."""
    head = words.draw(prefix)

    def length(mean: int) -> int:
        return words.random.randint(
            max(1, math.floor(mean * (1 - spread))), math.ceil(mean * (1 + spread))
        )

    items = [Item(head + words.draw(length(input)), length(output)) for _ in range(count)]
    return Workload("random", items)


def shared(
    words: Words, name: str, groups: int, each: int, prefix: int, suffix: int, output: int
) -> Workload:
    """`groups` prefixes, each with `each` different suffixes, in random order."""
    items = [
        Item(head + words.draw(suffix), output)
        for head in [words.draw(prefix) for _ in range(groups)]
        for _ in range(each)
    ]
    words.random.shuffle(items)
    return Workload(name, items)


def trace(path: Path, words: Words, count: int, scale: float = 1.0) -> Workload:
    """A CSV of lengths and, if the workload is to be timed, arrivals. Prompts are unrelated;
    lengths are divided by `scale`. Raises `ConfigError`."""
    with open_text(path) as lines:
        rows = csv.DictReader(lines)
        names = rows.fieldnames or []
        column = {key: next((n for n in known if n in names), "") for key, known in COLUMNS.items()}
        if not column["prompt"] or not column["output"]:
            raise ConfigError(
                f"{path}: needs a column of prompt tokens and one of output tokens, such as "
                f"prompt_tokens,output_tokens; has {','.join(names)}"
            )
        items: list[Item] = []
        first = math.nan
        for number, row in enumerate(rows, 2):
            if len(items) == count:
                break
            try:
                moment = _seconds(row[column["arrival"]]) if column["arrival"] else 0.0
                prompt, output = float(row[column["prompt"]]), float(row[column["output"]])
            except (ValueError, TypeError):
                raise ConfigError(f"{path}: line {number} is not a row of a trace") from None
            first = moment if math.isnan(first) else first
            ids = words.draw(max(1, round(prompt / scale)))
            items.append(Item(ids, max(1, round(output / scale)), moment - first))
    return Workload(path.name, items, timed=bool(column["arrival"]))


def mooncake(path: Path, words: Words, count: int, scale: int = 1) -> Workload:
    """A Mooncake trace. Equal hash ids become equal tokens, so prompts share the same prefixes.

    scale: divides all lengths, including blocks', so that prompts share the same proportion. With
    16 a block has 32 tokens. Raises `ConfigError`.
    """
    size = MOONCAKE_BLOCK // scale
    if size * scale != MOONCAKE_BLOCK:
        raise ConfigError(f"the scale must divide {MOONCAKE_BLOCK}, got {scale}")
    items = []
    for row in read_rows(path, count):
        try:
            ids = [token for name in row["hash_ids"] for token in words.block(name, size)]
            length, output = row["input_length"] / scale, row["output_length"] / scale
            arrival = row["timestamp"] / 1000
        except (KeyError, TypeError):
            raise ConfigError(
                f"{path}: not a Mooncake trace: each line needs timestamp, input_length, "
                "output_length and hash_ids"
            ) from None
        items.append(Item(ids[: max(1, round(length))], max(1, round(output)), arrival))
    return Workload(path.name, items, timed=True)


def sharegpt(
    path: Path, tokenizer: Tokenizer, count: int, seed: int, output: int | None = None
) -> Workload:
    """The first question, and the length of the first answer, of conversations, with the usual
    filter: drops prompts under 4 or over 1024 tokens, answers under 4, and more than 2048 in all.
    Raises `ConfigError`."""
    try:
        with open_text(path) as file:
            data = json.load(file)
        talks = [turns for entry in data if len(turns := entry["conversations"]) >= 2]
        Random(seed).shuffle(talks)
        items: list[Item] = []
        for turns in talks:
            if len(items) == count:
                break
            prompt = turns[0]["value"]
            asked = len(tokenizer.encode(prompt))
            answered = output or len(tokenizer.encode(turns[1]["value"]))
            if 4 <= asked <= 1024 and 4 <= answered and asked + answered <= 2048:
                items.append(Item(prompt, answered))
    except (ValueError, KeyError, TypeError):
        raise ConfigError(f"{path}: not a ShareGPT file: a list of conversations") from None
    return Workload("sharegpt", items)


def custom(path: Path, count: int, output: int) -> Workload:
    """JSON lines: `prompt` (text or ids), `output_tokens` (or `output`). Raises `ConfigError`."""
    items = []
    for row in read_rows(path, count):
        prompt = row.get("prompt")
        if not prompt or not isinstance(prompt, str | list):
            raise ConfigError(f'{path}: each line needs a "prompt", a string or token ids')
        items.append(Item(prompt, int(row.get("output_tokens") or output)))
    return Workload(path.name, items)


def fewshot(path: Path, count: int, output: int) -> Workload:
    """Questions after a prefix of worked examples, as in few-shot evaluation of GSM8K.

    path: a JSON lines file, in which a line with a `prefix` precedes lines with its `question`s, or
    a folder with fewshot_prefixes and gsm8k (.jsonl or .jsonl.gz). Raises `ConfigError`.
    """
    if path.is_dir():
        prefixes = read_rows(find_rows(path, "fewshot_prefixes.jsonl"))
        chosen = [row for row in prefixes if row.get("prefix_id") == "gsm8k/8shot-cot"]
        rows: Iterator[dict[str, Any]] = iter([*chosen, *read_rows(find_rows(path, "gsm8k.jsonl"))])
    else:
        rows = read_rows(path)
    prefix = ""
    items: list[Item] = []
    for row in rows:
        prefix = row.get("prefix", prefix)
        if "question" in row and len(items) < count:
            items.append(Item(f"{prefix}Q: {row['question']}\n\nA:", output))
    if not items or not prefix:
        raise ConfigError(f'{path}: needs a line with a "prefix" and lines with a "question"')
    return Workload("gsm8k", items)


def mt_bench(path: Path, count: int, output: int) -> Workload:
    """MT-bench conversations: later turns follow the model's own answers. Raises `ConfigError`."""
    rows = read_rows(find_rows(path, "mt_bench.jsonl") if path.is_dir() else path, count)
    turns = [row.get("turns") for row in rows]
    if not turns or not all(turns):
        raise ConfigError(f'{path}: each line needs "turns", what the user says one after another')
    items = [Item(said[0], output, turns=tuple(said[1:])) for said in turns if said]
    return Workload("mt-bench", items)


def as_text(workload: Workload, decode: Callable[[list[int]], str]) -> Workload:
    """The workload with prompts as text, for servers and endpoints that take no token ids."""
    items = [
        item if isinstance(item.prompt, str) else replace(item, prompt=decode(item.prompt))
        for item in workload.items
    ]
    return replace(workload, items=items)


def _seconds(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return datetime.fromisoformat(text).timestamp()
