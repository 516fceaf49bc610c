"""What a GPU's link to pinned memory carries of KV pages, and what a step pays for it.

    python bench/kv_link.py [int8 | int4]

Pages of the Llama-3.1-8B shape (2 MiB each, 64 KiB a layer), by the engine's own `Link`, for some
numbers of programs that read or write the host's memory; in codes there, if these are named.
"""

import argparse
import random
import statistics
import time
from collections.abc import Callable

import torch

from weir.core import Tier
from weir.cost.transfer import SLOTS
from weir.ops.attention import write
from weir.runtime import link as module
from weir.runtime.relay import mapped
from weir.runtime.store import Store
from weir.spec import AttentionSpec

LAYERS = [AttentionSpec(32, 8, 128, scale=1.0)] * 32
PAGES, REPEATS = 4096, 5


def seconds(run: Callable[[], None], *streams: torch.cuda.Stream) -> float:
    """Median of the time from the first launch until these streams are done."""
    found = []
    for _ in range(REPEATS):
        torch.cuda.synchronize()
        began = time.perf_counter()
        run()
        for stream in streams:
            stream.synchronize()
        found.append(time.perf_counter() - began)
    return statistics.median(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("cold", nargs="?", choices=("int8", "int4"), help="codes there")
    options = parser.parse_args()
    cuda = torch.device("cuda")
    sizes = {int(Tier.GPU): PAGES, int(Tier.CPU): PAGES}
    devices = {int(Tier.GPU): cuda, int(Tier.CPU): torch.device("cpu")}
    began = time.perf_counter()
    cold = getattr(torch, options.cold) if options.cold else None
    store = Store(LAYERS, 16, sizes, devices, torch.bfloat16, cold=cold)
    gigabytes = store.record * PAGES / 1e9
    print(f"{gigabytes:.1f} GB pinned in {time.perf_counter() - began:.1f} s")
    link = store.link
    assert link is not None
    room = SLOTS * link.rows
    rng = random.Random(1)
    here, there = (rng.sample(range(PAGES), PAGES // 2) for _ in range(2))
    moved = store.record * len(here) / 1e9
    a = torch.randn(8192, 8192, device=cuda, dtype=torch.bfloat16)

    def work() -> None:
        for _ in range(30):
            a @ a

    compute = torch.cuda.current_stream()
    alone = seconds(work, compute)
    print("| programs | to the GPU, GB/s | from it | both | a step beside saves | beside loads |")
    print("|---|---|---|---|---|---|")
    for programs in (8, 16, 32):
        module.PROGRAMS = programs
        up = moved / seconds(lambda: link.load(there, here), compute)
        down = moved / seconds(lambda: link.save(here, there), link.down.stream)

        def both() -> None:
            for at in range(0, len(here) // 2, link.rows):
                link.save(here[at : at + link.rows], there[at : at + link.rows])
                end = len(here) - at
                link.load(there[end - link.rows : end], here[end - link.rows : end])

        together = moved / seconds(both, compute, link.down.stream)

        def saving() -> None:
            link.save(here[:room], there[:room])
            work()

        def loading() -> None:
            work()
            link.load(there[:room], here[:room])

        saved = seconds(saving, compute) / alone
        loaded = seconds(loading, compute) / alone
        print(
            f"| {programs} | {up:.1f} | {down:.1f} | {together:.1f} | {saved:.1%} | {loaded:.1%} |",
            flush=True,
        )
    for name, copy in (("save", link.save), ("load", link.load)):
        took = seconds(lambda copy=copy: copy(here[: link.rows], there[: link.rows]))
        print(f"host time of a {name} of {link.rows} pages: {1e6 * took:.0f} us")
    kv, k = mapped(store.kv[Tier.CPU][0], cuda), a[:, :1024].contiguous().view(-1, 8, 128)
    slots = (torch.tensor(there[:512])[:, None] * 16 + torch.arange(16)).view(-1).to(cuda)
    took = seconds(lambda: write(kv, k, k, slots), compute)
    rate = 2 * k.nbytes / took / 1e9
    print(f"new rows of a layer, {len(k)} tokens: {rate:.1f} GB/s of numbers of 16 bits")
    print(f"{30} products take {1e3 * alone:.1f} ms, {room} pages are moved beside them")


if __name__ == "__main__":
    main()
