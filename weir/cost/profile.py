"""Measures a grid of steps on an executor and saves it for later runs on this machine.

Plans are made without a scheduler, on pages without content, which does not affect their time.
Knows no model and no device; of an executor it uses only `submit` and `capacity`.
"""

import hashlib
import platform
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any, Protocol

import msgspec

from weir.core import Capacity, Chunk, Page, Plan, Result, Sampling
from weir.cost.table import Grid, Table
from weir.cost.work import Work
from weir.errors import ConfigError
from weir.linux import cpu_info

GREEDY = Sampling(temperature=0.0, max_tokens=1 << 30)


class Handle(Protocol):
    def result(self) -> Result: ...


class Executor(Protocol):
    capacity: Capacity

    def submit(self, plan: Plan) -> Handle: ...


def fits(work: Work, size: Capacity) -> bool:
    """Whether an executor of that capacity can do the work in one step."""
    ends = [*work.contexts, *(length + start for length, start in work.prompts)]
    pages = sum(-(-end // size.page) for end in ends)
    within = work.tokens <= size.tokens and len(ends) <= size.requests
    return within and pages <= min(size.pages.items())[1] and max(ends, default=0) <= size.context


class Bench:
    """Runs steps of given shapes, one at a time."""

    def __init__(self, executor: Executor):
        self.executor = executor
        self.capacity = executor.capacity
        self.tier = min(self.capacity.pages)
        self.step = 0
        self.live: list[int] = []

    def seconds(self, work: Work) -> float:
        """Seconds of one step that does `work`. Decodes sample, prompt chunks do not."""
        chunks = [(1, context - 1) for context in work.contexts] + work.prompts
        forget, self.live = self.live, []
        lane, page = [], 0
        for uid, (length, start) in enumerate(chunks, self.step * self.capacity.requests):
            need = -(-(start + length) // self.capacity.page)
            pages = [Page(self.tier, page + i) for i in range(need)]
            page += need
            ids = [(7 * uid + i) % 251 + 1 for i in range(length)]
            sample = GREEDY if length == 1 else None
            lane.append(Chunk(uid, start, ids, pages, self.tier, sample, start + length))
            self.live.append(uid)
        self.step += 1
        plan = Plan(self.step, [], [lane], forget)
        return self.executor.submit(plan).result().seconds

    def close(self) -> None:
        """Make the executor forget the requests of the last step."""
        self.executor.submit(Plan(self.step + 1, [], [], self.live)).result()
        self.live = []


Cells = dict[tuple[str, int, int], Work]


def cells(size: Capacity) -> Cells:
    """The steps to measure that fit: prompt chunks by length, start; decodes by number, context."""
    room = max(size.context - size.tokens, size.context // 2)
    lengths = _powers(2, size.tokens)
    starts = [0, *_powers(max(1, min(128, room // 4)), room)[::2]]
    batches = _powers(1, size.requests)
    contexts = _powers(16, size.context)[::2]
    works = {("prompts", n, s): Work(prompts=[(n, s)]) for n in lengths for s in starts}
    works |= {("decodes", b, c): Work(b, [c] * b) for b in batches for c in contexts}
    return {cell: work for cell, work in works.items() if fits(work, size)}


def profile(
    executor: Executor,
    key: dict[str, str],
    repeats: int = 3,
    others: Sequence[Work] = (),
    on_step: Callable[[], None] = lambda: None,
) -> tuple[Table, list[float]]:
    """Measure all cells, and the seconds of `others` in the same rounds, so that a drift of the
    machine's speed affects all alike. Takes medians of `repeats` rounds after one to warm up.
    Raises `ConfigError` if the executor's capacity is too small."""
    works = cells(executor.capacity)
    bench = Bench(executor)
    samples: list[list[float]] = []
    for _ in range(repeats + 1):
        samples.append([])
        for work in (*works.values(), *others):
            samples[-1].append(bench.seconds(work))
            on_step()
    bench.close()
    medians = [statistics.median(values) for values in zip(*samples[1:], strict=True)]
    found = dict(zip(works, medians, strict=False))
    return Table(key, _grid("prompts", found), _grid("decodes", found)), medians[len(works) :]


def _grid(kind: str, found: dict[tuple[str, int, int], float]) -> Grid:
    """A full grid. Cells that did not fit grow as in the row above, in proportion to the rows."""
    rows = sorted({row for name, row, _ in found if name == kind})
    columns = sorted({column for name, row, column in found if (name, row) == (kind, rows[0])})
    if len(rows) < 2 or len(columns) < 2:
        raise ConfigError("the KV cache is too small to profile: raise --kv-cache-memory")
    table: list[list[float]] = []
    for i, row in enumerate(rows):
        line: list[float] = []
        for j, column in enumerate(columns):
            value = found.get((kind, row, column))
            if value is None:
                more = table[-1][j] - table[-1][j - 1]
                value = line[-1] + max(0.0, more * row / rows[i - 1])
            line.append(value)
        table.append(line)
    return Grid(rows, columns, table)


def _powers(first: int, last: int) -> list[int]:
    return [first << i for i in range(max(0, last // first).bit_length())]


def mixtures(capacity: Capacity, count: int, seed: int = 0) -> Iterable[Work]:
    """Random steps like those of serving, to check a cost model; they are not on a grid."""
    random = Random(seed)
    longest = min(capacity.context, 4096)
    while count:
        decodes = round(random.uniform(0, 1) ** 2 * (capacity.requests - 2))
        prompts = random.choice([0, 0, 1, 1, 2]) if decodes else random.choice([1, 2])
        usual = random.randrange(32, longest // 2)
        contexts = [min(longest, round(usual * random.uniform(0.5, 1.5))) for _ in range(decodes)]
        room = max(2, (capacity.tokens - decodes) // 2)
        chunks = [
            (random.randrange(2, room + 1), random.choice([0, random.randrange(longest // 2)]))
            for _ in range(prompts)
        ]
        work = Work(decodes, contexts, chunks)
        if work.tokens and fits(work, capacity):
            count -= 1
            yield work


def identity(info: Mapping[str, Any], model: str, version: str) -> dict[str, str]:
    """The key of a profile: the model and, mostly from the engine's info, the machine."""
    chosen = ("device", "dtype", "kv_dtype", "kernels", "threads", "architecture")
    named = {name: str(info[name]) for name in chosen}
    return {"model": model, "version": version, "processor": _processor(), **named}


def _processor() -> str:
    names = [one["model name"] for one in cpu_info() if "model name" in one]
    return f"{len(names)} x {names[0]}" if names else platform.processor()


def path(folder: Path, key: dict[str, str]) -> Path:
    """The file for the table with this key."""
    digest = hashlib.sha256(repr(sorted(key.items())).encode()).hexdigest()[:16]
    return folder / f"{digest}.json"


def save(table: Table, file: Path) -> None:
    """Write a table atomically. Raises `ConfigError` if it cannot be written."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_suffix(".part")
        part.write_bytes(msgspec.json.encode(table) + b"\n")
        part.replace(file)
    except OSError as error:
        raise ConfigError(f"{file}: cannot be written: {error.strerror}") from None


def load(file: Path, key: dict[str, str] | None = None) -> Table:
    """Read a table. Raises `ConfigError` if it cannot be read or has another key."""
    try:
        table = msgspec.json.decode(file.read_bytes(), type=Table)
    except (OSError, msgspec.DecodeError) as error:
        raise ConfigError(f"{file}: not a profile that can be read: {error}") from None
    if key is not None and table.key != key:
        raise ConfigError(f"{file}: profiles {table.key}, not {key}: run `weir profile` again")
    return table
