"""Workloads of bench/scheduling.py: lengths of real requests, prompts with real structure.

Files come from the folder WEIR_DATA. Prompts of which only lengths matter are random tokens.
"""

import os
from collections.abc import Iterable
from pathlib import Path
from random import Random

from weir.bench.datasets import tokenizer
from weir.rows import read_rows, read_table
from weir.sim.flags import Vocabulary
from weir.sim.workload import Item, Words, Workload

DATA = Path(os.environ.get("WEIR_DATA", "data"))
VOCAB = 128256
CHAT = ("arena-hard-v0.1", "arena-hard-v2.0", "oasst-prompts", "vicuna-80", "self-instruct-252")
"""Sources of the lengths data in which people ask what they like."""


def words(seed: int) -> Words:
    return Words(Vocabulary(VOCAB), seed)


def drawn(name: str, pairs: Iterable[tuple[int, int]], seed: int) -> Workload:
    """Requests of (prompt, output) lengths."""
    source = words(seed)
    return Workload(name, [Item(source.draw(asked), answered) for asked, answered in pairs])


def uniform(count: int, seed: int) -> Workload:
    """Orca's: prompts of 32 to 512 tokens, answers of 1 to 128."""
    rng = Random(seed)
    pairs = [(rng.randint(32, 512), rng.randint(1, 128)) for _ in range(count)]
    return drawn("uniform", pairs, seed)


def lengths(file: str, count: int, seed: int, longest: int = 8000) -> Workload:
    """A sample of the rows of a trace, in random order."""
    rows = [
        (int(row["prompt_tokens"]), int(row["output_tokens"])) for row in read_table(DATA / file)
    ]
    rows = [(asked, answered) for asked, answered in rows if asked + answered <= longest]
    return drawn(file, Random(seed).choices([r for r in rows if min(r) > 0], k=count), seed)


def chats(count: int, seed: int) -> Workload:
    """Requests drawn from the lengths of real models' answers to chat prompts."""
    asked = {}
    for row in read_rows(DATA / "lengths/prompts.jsonl.gz"):
        if row["source"] in CHAT:
            asked[row["prompt_id"]] = int(row["prompt_tokens"])
    pairs = [
        (asked[row["prompt_id"]], int(row["output_tokens"]))
        for row in read_table(DATA / "lengths/output_lengths.csv.gz")
        if row["prompt_id"] in asked and int(row["output_tokens"]) > 0
    ]
    return drawn("chats", Random(seed).choices(pairs, k=count), seed)


def asked(count: int, seed: int) -> list[str]:
    """Texts of chat prompts."""
    rows = [
        row["prompt"]
        for row in read_rows(DATA / "lengths/prompts.jsonl.gz")
        if row["source"] in CHAT
    ]
    return Random(seed).sample(rows, count)


def fewshot(count: int, seed: int) -> Workload:
    """Questions after one of 68 few-shot prefixes each, in random order."""
    rng, source = Random(seed), words(seed)
    heads = [
        source.block(row["prefix_id"], int(row["prefix_tokens"]))
        for row in read_rows(DATA / "prefix/fewshot_prefixes.jsonl.gz")
    ]
    asked = [int(row["question_tokens"]) for row in read_rows(DATA / "prefix/gsm8k.jsonl.gz")]
    items = [Item(rng.choice(heads) + source.draw(rng.choice(asked)), 64) for _ in range(count)]
    return Workload("few-shot", items)


PROPOSE = "Input: {x}\n{state}Possible next steps:\n"
VALUE = "Evaluate if the given steps can reach the goal (sure, likely, impossible).\n{x}\n{state}\n"


def trees(tasks: int, seed: int, rate: float = 2.0, think: float = 3.0) -> Workload:
    """Recorded tree-of-thought searches: in each step a prompt to go on from every state, and one
    to judge every proposal. Searches start at random, a step each `think` seconds."""
    rng, encode, now = Random(seed), tokenizer("smollm2-135m").encode, 0.0
    head = next(read_rows(DATA / "prefix/fewshot_prefixes.jsonl.gz"))["prefix"]
    rows = list(read_rows(DATA / "prefix/tree_of_thought.jsonl.gz"))
    items = []
    for row in rng.sample(rows, min(tasks, len(rows))):
        now += rng.expovariate(rate)
        for at, step in enumerate(row["steps"]):
            prompts = [PROPOSE.format(x=row["x"], state=state) for state in step["states"]]
            prompts += [VALUE.format(x=row["x"], state=state) for state in step["proposals"]]
            rng.shuffle(prompts)
            for prompt in prompts:
                items.append(Item(encode(head + prompt), 32, now + think * at))
    return Workload("tree of thought", sorted(items, key=lambda item: item.arrival), timed=True)


def best_hits(workload: Workload, page: int) -> float:
    """The share of prompt tokens that a cache without bound finds, in any order: pages beyond the
    first of their kind. At least one token of a prompt is computed."""
    seen: set[int] = set()
    hits = total = 0
    for item in workload.items:
        chain, prompt = 0, item.prompt
        total += len(prompt)
        for at in range(0, len(prompt) - page, page):
            chain = hash((chain, *prompt[at : at + page]))
            hits += page * (chain in seen)
            seen.add(chain)
    return hits / total
