"""What main memory below a GPU's KV cache is worth: the Mooncake traces, simulated.

    python bench/tiers.py [conversation|synthetic]
    python bench/tiers.py conversation FOLDER FASTER ...

One in SHARE conversations of the trace, whole, arriving FASTER times sooner, on Llama-3.1-8B on an
H100 whose KV pool holds a tenth of all KV that they make; with and without room for all of it in
main memory, and with a link that takes no time, which no tier can beat. Then the same lengths with
nothing in common, which a cache can only make slower.
With a FOLDER, the real engine: SmolLM2-135M on this CPU, all lengths SMALLER times shorter and long
requests left out, and what main memory has no room for on the disk of that folder.
"""

import argparse
import gc
import tempfile
import time
import zlib
from collections import deque
from collections.abc import Iterable
from random import Random
from typing import Any

import scheduling_sets as sets
from msgspec.structs import replace

from weir import build
from weir.config import Config
from weir.core import Request, Sampling
from weir.cost.hardware import H100, Hardware
from weir.cost.roofline import Roofline
from weir.cost.work import cache_bytes
from weir.rows import read_rows
from weir.sim.flags import Scene
from weir.sim.fleet import capacity
from weir.sim.replay import replay
from weir.sim.report import Record, Report, measure
from weir.sim.shapes import shape
from weir.sim.workload import Item, Workload

SPEC = shape("llama-3.1-8b")
BLOCK = 512  # tokens of a hash id
LONGEST = 120_000  # tokens of a prompt and its answer
SHARE = {"conversation": 16, "synthetic": 5}
FASTER = {
    "conversation": (8, 9, 10, 11, 12, 24),
    "synthetic": (1.5, 2, 2.5, 3, 3.5, 4, 16),
}


FREE = replace(H100, link_rate=1e15)
SMALLER = 32
REAL_SHARE, REAL_LONGEST = 64, 40_000


def rows(name: str, share: int, longest: int) -> list[dict[str, Any]]:
    """A share of the conversations, which differ from the second block on."""
    return [
        row
        for row in read_rows(sets.DATA / "traces" / f"mooncake_{name}.jsonl.gz")
        if zlib.crc32(repr(row["hash_ids"][:2]).encode()) % share == 0
        and row["input_length"] + row["output_length"] <= longest
    ]


def workload(
    some: Iterable[dict[str, Any]], faster: float, related: bool = True, smaller: int = 1
) -> Workload:
    items = []
    for number, row in enumerate(some):
        names = row["hash_ids"] if related else [(number, at) for at in range(len(row["hash_ids"]))]
        ids = [
            token
            for name in names
            for token in Random(str(name)).choices(range(1000, 40_000), k=BLOCK // smaller)
        ]
        arrival = row["timestamp"] / 1000 / faster
        ids = ids[: max(1, row["input_length"] // smaller)]
        items.append(Item(ids, max(1, row["output_length"] // smaller), arrival))
    return Workload("mooncake", items, timed=True)


def simulated(load: Workload, pool: int, below: int, device: Hardware) -> Report:
    """pool, below: tokens that the GPU and main memory hold."""
    token = int(cache_bytes(SPEC))
    config = Config(
        kv_cache_memory=pool * token, cpu_cache=below * token, max_model_len=LONGEST, ranker="none"
    )
    size = capacity(config, SPEC, device)
    scene = Scene(config, SPEC, size, Roofline(SPEC, device), device)
    gc.collect()
    return measure(*replay(load, scene.fleet()))


def served(load: Workload, config: Config) -> tuple[Report, list[list[int]]]:
    """What the real engine makes of it, and the tokens of its answers."""
    engine, live = build.engine(config), deque(enumerate(load.items))
    records = [Record(0.0, prompt_tokens=len(item.prompt)) for item in load.items]
    answers: list[list[int]] = [[] for _ in records]
    began = time.monotonic()
    while live or engine.busy:
        now = time.monotonic()
        while live and began + live[0][1].arrival <= now:
            uid, item = live.popleft()
            records[uid].start = began + item.arrival
            sampling = Sampling(temperature=0.0, max_tokens=item.output)
            engine.add(Request(uid, list(item.prompt), sampling, arrival=records[uid].start))
        if not engine.busy:
            time.sleep(max(0.0, began + live[0][1].arrival - now))
            continue
        for delta in engine.step():
            record = records[delta.uid]
            assert delta.done in (None, "length"), delta.error
            answers[delta.uid] += delta.tokens
            record.output_tokens += len(delta.tokens)
            record.arrivals += [time.monotonic()] if delta.tokens else []
            record.cached_tokens = max(record.cached_tokens, delta.cached)
    took = time.monotonic() - began
    engine.close()
    return measure(records, took), answers


def real(name: str, folder: str, times: list[float]) -> None:
    some = rows(name, REAL_SHARE, REAL_LONGEST)
    blocks = {block for row in some for block in row["hash_ids"]}
    spec = shape("smollm2-135m")
    token = int(cache_bytes(spec))
    kept = len(blocks) * BLOCK // SMALLER + sum(row["output_length"] for row in some) // SMALLER
    print(f"{len(some)} requests, {kept} tokens of KV, {kept // 10} of them in memory\n")
    print("| requests/s asked | KV | mean TTFT, s | requests/s | found |\n|---|---|---|---|---|")
    for faster in times:
        for related in (True, False):
            load = workload(some, faster, related, SMALLER)
            asked = len(some) / max(item.arrival for item in load.items)
            told = []
            for disk in (False, True):
                with tempfile.TemporaryDirectory(dir=folder) as there:
                    below = {"disk_cache": there, "disk_cache_size": 2 * kept * token}
                    plain = {"model": "smollm2-135m", "kv_cache_memory": kept // 10 * token}
                    plain |= {"ranker": "none", "grammar_backend": "none"}
                    report, answers = served(load, Config(**plain, **(below if disk else {})))
                told.append(answers)
                label = ("memory and disk" if disk else "memory") + ", nothing in common" * (
                    not related
                )
                print(
                    f"| {asked:.2f} | {label} | {report.metrics['ttft'].mean / 1e3:.2f} "
                    f"| {report.request_throughput:.3f} | {report.hit_rate:.1%} |",
                    flush=True,
                )
            assert told[0] == told[1], "a disk changed tokens"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("name", nargs="?", choices=SHARE, default="conversation")
    parser.add_argument(
        "folder", nargs="?", metavar="FOLDER", help="the real engine, its disk here"
    )
    parser.add_argument("faster", nargs="*", type=float, metavar="FASTER")
    options = parser.parse_args()
    name = options.name
    if options.folder:
        return real(name, options.folder, options.faster)
    some = rows(name, SHARE[name], LONGEST)
    blocks = {block for row in some for block in row["hash_ids"]}
    total = sum(len(row["hash_ids"]) for row in some)
    kept = BLOCK * len(blocks) + sum(row["output_length"] for row in some)
    pool = kept // 10
    print(
        f"{len(some)} requests, {BLOCK * total / 1e6:.1f} M prompt tokens, "
        f"{1 - len(blocks) / total:.0%} of them seen before; "
        f"{kept / 1e6:.1f} M tokens of KV, a tenth of them on the GPU\n"
    )
    print(
        "| faster | requests/s asked | KV | mean TTFT, s | P99 | requests/s | found | preempted |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for faster in FASTER[name]:
        kinds = [("GPU", H100, 0), ("GPU and main memory", H100, kept)]
        for related, more in ((True, [("and a free link", FREE, kept)]), (False, [])):
            load = workload(some, faster, related)
            asked = len(some) / max(item.arrival for item in load.items)
            for label, device, below in kinds + more:
                report = simulated(load, pool, below, device)
                ttft = report.metrics["ttft"]
                label += "" if related else ", nothing in common"
                print(
                    f"| {faster} | {asked:.2f} | {label} | {ttft.mean / 1e3:.2f} "
                    f"| {ttft.percentile(99) / 1e3:.2f} | {report.request_throughput:.3f} "
                    f"| {report.hit_rate:.1%} | {report.preemptions} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
