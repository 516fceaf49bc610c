"""Workloads keep what makes a trace worth replaying: its times, lengths and shared prefixes."""

import json
import math
import statistics
from collections.abc import Iterable
from itertools import pairwise, takewhile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weir.errors import ConfigError
from weir.sim import workload
from weir.sim.workload import Item, Words, Workload

SAMPLES = Path(__file__).parent.parent / "data" / "workloads"
PROMPTS = Path(workload.__file__).parent.parent / "data" / "demo_prompts.jsonl"


class Letters:
    """A tokenizer with one token a character, and two special ones."""

    vocab = 100
    special = frozenset({0, 99})

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return [ord(letter) % 98 + 1 for letter in text]

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = True) -> str:
        return "".join(chr(i) for i in ids)


def words(seed: int = 0) -> Words:
    return Words(Letters(), seed)


def lengths(made: Workload) -> list[int]:
    return [len(item.prompt) for item in made.items]


def shared(a: list[int], b: list[int]) -> int:
    """Length of the common prefix."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False)))


def test_azure_keeps_times_and_lengths() -> None:
    made = workload.trace(SAMPLES / "azure_conv.csv.gz", words(), 50)
    assert made.timed
    assert [(i.arrival, len(i.prompt), i.output) for i in made.items[:2]] == [
        (0.0, 374, 44),
        (4.314579, 396, 109),
    ]
    assert len(made.items) == 50
    assert len({tuple(item.prompt) for item in made.items}) == 50


def test_azure_as_it_was_published(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_text(
        "TIMESTAMP,ContextTokens,GeneratedTokens\r\n"
        "2023-11-16 18:15:46.6805900,374,44\r\n"
        "2023-11-16 18:15:50.9951690,396,109\r\n"
    )
    made = workload.trace(path, words(), 10, scale=4)
    assert lengths(made) == [94, 99]
    assert [item.output for item in made.items] == [11, 27]
    assert made.items[1].arrival == pytest.approx(4.314579, abs=1e-5)


@pytest.mark.parametrize("scale", [1, 16])
def test_mooncake_prompts_share_what_their_hash_ids_share(scale: int) -> None:
    path = SAMPLES / "mooncake.jsonl.gz"
    made = workload.mooncake(path, words(), 60, scale)
    rows = list(workload.read_rows(path))
    block = 512 // scale
    assert lengths(made) == [max(1, round(row["input_length"] / scale)) for row in rows]
    heads = [tuple(row["hash_ids"][:3]) for row in rows]
    base = heads.index(max(heads, key=heads.count))
    assert heads.count(heads[base]) == 3
    for item, row in zip(made.items, rows, strict=True):
        same = shared(row["hash_ids"], rows[base]["hash_ids"])
        least = min(same * block, len(item.prompt), len(made.items[base].prompt))
        assert least <= shared(item.prompt, made.items[base].prompt) < (same + 1) * block


def test_mooncake_scale_must_divide_a_block() -> None:
    with pytest.raises(ConfigError, match="divide 512"):
        workload.mooncake(SAMPLES / "mooncake.jsonl.gz", words(), 1, 3)


def test_fewshot_prompts_share_the_prefix() -> None:
    made = workload.fewshot(PROMPTS, 64, 32)
    prompts = [item.prompt for item in made.items]
    assert len(set(prompts)) == 64
    common = shared([ord(c) for c in prompts[0]], [ord(c) for c in prompts[1]])
    assert common > 2000
    assert all(prompt.endswith("\n\nA:") for prompt in prompts)


def test_fewshot_from_a_folder(tmp_path: Path) -> None:
    (tmp_path / "fewshot_prefixes.jsonl").write_text(
        '{"prefix_id": "other", "prefix": "no"}\n{"prefix_id": "gsm8k/8shot-cot", "prefix": "P "}\n'
    )
    (tmp_path / "gsm8k.jsonl").write_text('{"question": "a?"}\n\n{"question": "b?"}\n')
    made = workload.fewshot(tmp_path, 10, 5)
    assert [item.prompt for item in made.items] == ["P Q: a?\n\nA:", "P Q: b?\n\nA:"]


def test_mt_bench_turns() -> None:
    made = workload.mt_bench(SAMPLES / "mt_bench.jsonl", 4, 99)
    assert len(made.items) == 4
    assert all(len(item.turns) == 1 and item.output == 99 for item in made.items)


def test_sharegpt_is_filtered_as_usual(tmp_path: Path) -> None:
    def talk(asked: int, answered: int) -> dict:
        said = [{"from": "human", "value": "q" * asked}, {"from": "gpt", "value": "a" * answered}]
        return {"id": "x", "conversations": said}

    data = [talk(10, 20), talk(3, 20), talk(1025, 20), talk(10, 3), talk(1000, 1049)]
    data += [talk(1024, 1024), {"id": "y", "conversations": []}]
    path = tmp_path / "sharegpt.json"
    path.write_text(json.dumps(data))
    made = workload.sharegpt(path, Letters(), 100, 0)
    assert sorted((len(i.prompt), i.output) for i in made.items) == [(10, 20), (1024, 1024)]


def test_custom(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    path.write_text('{"prompt": "hi"}\n{"prompt": [1, 2], "output_tokens": 3}\n')
    made = workload.custom(path, 10, 7)
    assert made.items == [Item("hi", 7), Item([1, 2], 3)]


@pytest.mark.parametrize(
    ("load", "content"),
    [
        (lambda path: workload.trace(path, words(), 9), "a,b\n1,2\n"),
        (lambda path: workload.trace(path, words(), 9), "prompt_tokens,output_tokens\n1,x\n"),
        (lambda path: workload.mooncake(path, words(), 9), '{"timestamp": 0}\n'),
        (lambda path: workload.mooncake(path, words(), 9), "nonsense\n"),
        (lambda path: workload.sharegpt(path, Letters(), 9, 0), "[1]"),
        (lambda path: workload.custom(path, 9, 1), '{"prompt": ""}\n'),
        (lambda path: workload.custom(path, 9, 1), "[1]\n"),
        (lambda path: workload.fewshot(path, 9, 1), '{"question": "q"}\n'),
        (lambda path: workload.mt_bench(path, 9, 1), '{"turns": []}\n'),
    ],
)
def test_a_wrong_file_is_named(load, content: str, tmp_path: Path) -> None:
    path = tmp_path / "wrong.file"
    path.write_text(content)
    with pytest.raises(ConfigError, match=r"wrong\.file"):
        load(path)
    with pytest.raises(ConfigError, match="cannot be read"):
        load(tmp_path / "absent")


@given(st.integers(0, 5), st.integers(1, 40), st.floats(0, 0.9), st.integers(0, 9))
def test_random_lengths_stay_in_range(seed: int, mean: int, spread: float, prefix: int) -> None:
    made = workload.random(words(seed), 8, mean, mean, spread, prefix)
    low, high = max(1, math.floor(mean * (1 - spread))), math.ceil(mean * (1 + spread))
    assert all(low <= length - prefix <= high for length in lengths(made))
    assert all(low <= item.output <= high for item in made.items)
    assert len({tuple(item.prompt[:prefix]) for item in made.items}) == 1
    assert not {token for item in made.items for token in item.prompt} & Letters.special
    assert made == workload.random(words(seed), 8, mean, mean, spread, prefix)


def test_groups_share_their_prefix_and_nothing_else() -> None:
    made = workload.shared(words(), "gsp", 3, 4, 50, 10, 5)
    heads: dict[tuple[int, ...], int] = {}
    for item in made.items:
        heads[tuple(item.prompt[:50])] = heads.get(tuple(item.prompt[:50]), 0) + 1
    assert sorted(heads.values()) == [4, 4, 4]
    assert len({tuple(item.prompt) for item in made.items}) == 12


@pytest.mark.parametrize("burstiness", [0.5, 1.0, 4.0])
def test_arrivals_have_the_rate_and_burstiness_asked_for(burstiness: float) -> None:
    made = workload.poisson(Workload("w", [Item("x", 1)] * 4000), 20.0, burstiness, 1)
    times = [item.arrival for item in made.items]
    gaps = [b - a for a, b in pairwise(times)]
    assert times[0] == 0
    assert statistics.fmean(gaps) == pytest.approx(1 / 20, rel=0.1)
    variation = statistics.pstdev(gaps) / statistics.fmean(gaps)
    assert variation == pytest.approx(1 / math.sqrt(burstiness), rel=0.1)


def test_all_at_once_and_faster() -> None:
    items = [Item("x", 1, arrival=float(i)) for i in range(3)]
    at_once = workload.poisson(Workload("w", items, timed=True), math.inf, 1.0, 0)
    assert [item.arrival for item in at_once.items] == [0, 0, 0]
    assert [i.arrival for i in workload.paced(Workload("w", items), 2.0).items] == [0, 0.5, 1.0]
