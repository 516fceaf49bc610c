"""Our attention beside FlashInfer's on a Hopper GPU: heads of Llama-3.1-8B, bfloat16, pages of 16.

    python bench/beside_flashinfer.py [--only decode|prefill] [--rounds 30] [--limit 300]

Needs flashinfer-python 0.6, which compiles a kernel when first asked for it; one that is not there
within the limit, in seconds, is left out. Decodes go to its kernel for tensor cores, chunks to fa3.
It reads our pages as they are, in the layout that it calls HND, and gives o and lse as we do. Plans
are made before. A call is timed in a CUDA graph over copies of the pages that do not fit the cache,
ours and FlashInfer's in turn, the cache cleared before each graph; printed are medians, their ratio
(FlashInfer's by ours) and how far FlashInfer's o is from ours, relative in the norm.
"""

import argparse
import signal
import statistics
import sys
from collections.abc import Callable

import torch
from torch import Tensor

from weir.bench.kernels import (
    DTYPE,
    HEADS,
    KV_HEADS,
    PAGE,
    SIZE,
    TOLERANCE,
    batch_of,
    distance,
    recorded,
)
from weir.ops.attention import attend
from weir.ops.batch import Batch
from weir.ops.fastest import milliseconds
from weir.spec import AttentionSpec

SPEC = AttentionSpec(HEADS, KV_HEADS, SIZE, SIZE**-0.5)
WORKS = {  # sequences, tokens of each, keys that they see
    "decode": [(1, 1, 2048), (16, 1, 640), (32, 1, 2048), (256, 1, 1024), (64, 1, 8192)],
    "prefill": [(1, 2048, 2048), (1, 8192, 8192), (4, 512, 2560), (1, 512, 8704), (32, 128, 2176)],
}
SPACE = 1 << 29  # bytes for partial results
Way = Callable[[Tensor], tuple[Tensor, Tensor]]  # kv → o, lse


def our_way(q: Tensor, batch: Batch) -> Way:
    return lambda kv: attend(q, kv, batch, SPEC)


def flashinfer_way(kind: str, q: Tensor, batch: Batch) -> Way:
    """What FlashInfer has planned for q [T, Hq, D] and the pages of a batch."""
    import flashinfer

    counts = (batch.kv_len + PAGE - 1) // PAGE
    ends = torch.cat([counts.new_zeros(1), counts.cumsum(0)]).int()
    used = torch.arange(batch.table.shape[1], device=q.device) < counts.unsqueeze(1)
    pages = ends, batch.table[used], (batch.kv_len - 1) % PAGE + 1
    heads = HEADS, KV_HEADS, SIZE, PAGE
    space, out = torch.zeros(SPACE, dtype=torch.uint8, device=q.device), torch.empty_like(q)
    if kind == "decode":
        way = flashinfer.BatchDecodeWithPagedKVCacheWrapper(space, "HND", use_tensor_cores=True)
        way.plan(*pages, *heads, q_data_type=q.dtype)
    else:
        way = flashinfer.BatchPrefillWithPagedKVCacheWrapper(space, "HND", backend="fa3")
        way.plan(batch.q_start, *pages, *heads, causal=True, q_data_type=q.dtype)
    return lambda kv: way.run(q, kv, out=out, return_lse=True)


def late(*_: object) -> None:
    raise TimeoutError("not there within --limit")


def show(kind: str, rounds: int, limit: int) -> bool:
    """A line for each work; whether FlashInfer was there for all and gave what we give."""
    unit = "TB/s" if kind == "decode" else "TFLOP/s"
    print(f"\n{kind:19}{'µs':>9} {unit:>8}  FlashInfer's µs {unit:>8}   ratio    error")
    cold = torch.empty(2**28, dtype=torch.uint8, device="cuda")
    right = there = True
    for count, tokens, keys in WORKS[kind]:
        kv, batch = batch_of([keys] * count, [tokens] * count)
        q = torch.randn(count * tokens, HEADS, SIZE, device="cuda", dtype=DTYPE)
        ours = our_way(q, batch)
        want, error, graphs = ours(kv)[0], float("nan"), [recorded(ours, kv)]
        if there:
            signal.alarm(limit)
            try:
                theirs = flashinfer_way(kind, q, batch)
                o = theirs(kv)[0]
                graphs.append(recorded(theirs, kv))
                o.zero_()
                graphs[1][0]()  # what is timed is what must agree
                error = distance(o, want)
            except Exception as reason:
                there, graphs = False, graphs[:1]
                print(f"FlashInfer is left out: {reason!r}", file=sys.stderr)
            finally:
                signal.alarm(0)
        runs, (calls, *_) = zip(*graphs, strict=True)
        milliseconds(runs, rounds, cold)  # for the clock to rise
        times = [1e3 * statistics.median(each) for each in milliseconds(runs, rounds, cold)]
        micros = [time / calls for time in times]
        if kind == "decode":
            work = 4.0 * count * keys * KV_HEADS * SIZE / 1e6
        else:
            seen = tokens * (keys - tokens) + tokens * (tokens + 1) / 2
            work = 4.0 * count * seen * HEADS * SIZE / 1e6
        line = f"{count:3} x {tokens:4} of {keys:5}{micros[0]:10.1f} {work / micros[0]:8.3g}"
        if there:
            line += f"{micros[1]:18.1f} {work / micros[1]:8.3g} {micros[1] / micros[0]:7.2f}"
            line += f" {error:8.1e}{'' if error < TOLERANCE else ' WRONG'}"
        right &= there and error < TOLERANCE
        print(line, flush=True)
    return right


def main() -> int:
    """0 where FlashInfer was there and all outputs agree."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=WORKS)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--limit", type=int, default=300)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("no CUDA device was found")
    torch.manual_seed(0)
    signal.signal(signal.SIGALRM, late)
    print(torch.cuda.get_device_name())
    kinds = [options.only] if options.only else list(WORKS)
    right = [show(kind, options.rounds, options.limit) for kind in kinds]
    return 0 if all(right) else 1


if __name__ == "__main__":
    sys.exit(main())
