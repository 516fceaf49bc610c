"""The CPU kernels beside PyTorch's: time a call, and the share of what the machine can do.

    python bench/kernels_cpu.py [--threads N] [--repeats N]
    python bench/kernels_cpu.py --decodes 128 [--threads 1 2 4] [--queries 1 4 8] [--sequences 24]

Contestants take turns, so a busy machine slows all alike; printed is the best of many short runs.
Weights are rotated through copies larger than the last-level cache, as a model's layers are.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from weir.ops import attention, linear, mlp, native, norm, rope
from weir.ops.batch import Batch
from weir.ops.coded import BYTES, encode
from weir.spec import AttentionSpec, RopeSpec

GROUPS = (1, 4, 7, 8, 16)  # queries a KV head
KV_TYPES = (torch.bfloat16, torch.float16, torch.float32, *BYTES)
COLD = 128 << 20  # bytes of weight to go through before one is met again


@dataclass(slots=True, frozen=True)
class Shape:
    name: str
    hidden: int
    ffn: int
    heads: int
    kv_heads: int
    head_dim: int

    @property
    def linears(self) -> dict[str, tuple[int, int]]:
        qkv = (self.heads + 2 * self.kv_heads) * self.head_dim
        return {
            "qkv": (qkv, self.hidden),
            "gate_up": (2 * self.ffn, self.hidden),
            "down": (self.hidden, self.ffn),
        }


SHAPES = [
    Shape("SmolLM2-135M", 576, 1536, 9, 3, 64),
    Shape("Llama-3-8B", 4096, 14336, 32, 8, 128),
]


def race(calls: dict[str, Callable[[int], object]], repeats: int) -> dict[str, float]:
    """Best seconds a call of each contestant; `calls` get a counter to choose their weights by."""
    best = dict.fromkeys(calls, float("inf"))
    for turn in range(repeats + 1):
        for name, call in calls.items():
            start = time.perf_counter()
            call(turn)
            if turn:  # the first warms up
                best[name] = min(best[name], time.perf_counter() - start)
    return best


def report(what: str, best: dict[str, float], flop: float, data: float) -> None:
    """A line: microseconds, GFLOP/s and GB/s of each contestant."""
    cells = [
        f"{name} {seconds * 1e6:9.1f} us {flop / seconds / 1e9:5.0f} GFLOP/s "
        f"{data / seconds / 1e9:5.1f} GB/s"
        for name, seconds in best.items()
    ]
    print(f"{what:38s} " + " | ".join(cells), flush=True)


def bench_linears(shape: Shape, repeats: int) -> None:
    for name, (n, k) in shape.linears.items():
        for dtype in (torch.bfloat16, torch.float32):
            data = n * k * dtype.itemsize
            plain = [torch.randn(n, k).to(dtype) for _ in range(max(2, min(60, COLD // data)))]
            packed = [linear.pack(w) for w in plain]
            for m in (1, 4, 16, 128, 512):
                x = torch.randn(m, k)
                cast = x.to(dtype)

                def ours(turn: int, x: Tensor = x, packed: list = packed) -> Tensor:
                    return linear.linear(x, packed[turn % len(packed)])

                def torchs(turn: int, x: Tensor = cast, plain: list = plain) -> Tensor:
                    return torch.nn.functional.linear(x, plain[turn % len(plain)])

                best = race({"weir": ours, "F.linear": torchs}, repeats)
                what = f"{shape.name} {name} {str(dtype)[6:]} M={m}"
                report(what, best, 2.0 * m * n * k, data)


def bench_attention(shape: Shape, repeats: int, page: int = 16) -> None:
    heads, kv_heads, size = shape.heads, shape.kv_heads, shape.head_dim
    spec = AttentionSpec(heads, kv_heads, size, size**-0.5)
    for sequences, context, chunk in ((1, 256, 1), (16, 256, 1), (1, 2048, 1), (1, 512, 512)):
        pages = -(-context // page)
        kv = torch.randn(sequences * pages, 2, kv_heads, page, size).bfloat16()
        batch = Batch(
            torch.arange(0, sequences * chunk + 1, chunk, dtype=torch.int32),
            torch.full((sequences,), context, dtype=torch.int32),
            torch.randperm(sequences * pages).to(torch.int32).view(sequences, pages),
            torch.zeros(sequences * chunk, dtype=torch.int64),
        )
        q = torch.randn(sequences * chunk, heads, size)
        dense_q = q.view(sequences, chunk, heads, size).transpose(1, 2).bfloat16()
        k, v = torch.randn(2, sequences, kv_heads, context, size).bfloat16()
        best = race(
            {
                "weir (paged)": lambda _, q=q, kv=kv, b=batch: attention.attend(q, kv, b, spec),
                "SDPA (dense)": lambda _, q=dense_q, k=k, v=v, c=chunk > 1: (
                    torch.nn.functional.scaled_dot_product_attention(
                        q, k, v, is_causal=c, enable_gqa=True
                    )
                ),
            },
            repeats,
        )
        seen = chunk * context - chunk * (chunk - 1) / 2
        flop = 4.0 * sequences * heads * size * seen
        what = f"{shape.name} attend {sequences}x{chunk}@{context}"
        report(what, best, flop, 4.0 * sequences * kv_heads * context * size)


def bench_decodes(
    repeats: int, size: int, groups: list[int], sequences: int, page: int = 16
) -> None:
    """Decodes over more KV than a cache holds, beside reading as many bytes; medians. Queries are
    of 16 bits where KV is, as a GPU sends them."""
    kv_heads, context = 8, 1024
    for group in groups:
        spec = AttentionSpec(group * kv_heads, kv_heads, size, size**-0.5)
        pages = context // page
        batch = Batch(
            torch.arange(sequences + 1, dtype=torch.int32),
            torch.full((sequences,), context, dtype=torch.int32),
            torch.randperm(sequences * pages).to(torch.int32).view(sequences, pages),
            torch.zeros(sequences, dtype=torch.int64),
        )
        cells = []
        for dtype in KV_TYPES:
            one = torch.randn(1, 2, kv_heads, page, size)
            one = encode(one, dtype) if dtype in BYTES else one.to(dtype)
            kv = one.expand(sequences * pages, -1, -1, -1, -1).contiguous()
            q = torch.randn(sequences, spec.heads, size)
            q = q.bfloat16() if dtype in BYTES else q.to(dtype)
            calls = {
                "attend": lambda q=q, kv=kv, b=batch, s=spec: attention.attend(q, kv, b, s),
                "read": lambda kv=kv: native.library().read(kv.data_ptr(), kv.nbytes // 4),
            }
            seconds: dict[str, list[float]] = {name: [] for name in calls}
            for _ in range(repeats):
                for name, call in calls.items():
                    start = time.perf_counter()
                    call()
                    seconds[name].append(time.perf_counter() - start)
            ours, plain = (statistics.median(seconds[name]) for name in calls)
            rate = kv.nbytes / ours / 1e9
            each = ours * 1e9 / (sequences * context * kv_heads)
            cells.append(
                f"{str(dtype)[6:]} {rate:.1f} GB/s ({plain / ours:.0%}), {each:.1f} ns a key"
            )
        print(f"{group} queries a KV head of {size}: " + " | ".join(cells), flush=True)


def bench_rows(shape: Shape, repeats: int) -> None:
    table = rope.tables(RopeSpec(), shape.head_dim, 1024)
    for m in (1, 256):
        x, weight = torch.randn(m, shape.hidden), torch.ones(shape.hidden)
        gate_up, pos = torch.randn(m, 2 * shape.ffn), torch.arange(m)
        q = torch.randn(m, shape.heads, shape.head_dim)
        k = torch.randn(m, shape.kv_heads, shape.head_dim)
        ops: dict[str, tuple[Callable[[int], object], Callable[[int], object], int]] = {
            "rms_norm": (
                lambda _, x=x, w=weight: norm.rms_norm(x, w, 1e-5),
                lambda _, x=x, w=weight: norm.reference_rms_norm(x, w, 1e-5),
                x.nbytes * 2,
            ),
            "gated": (
                lambda _, x=gate_up: mlp.gated(x, "silu"),
                lambda _, x=gate_up: mlp.reference_gated(x, "silu"),
                gate_up.nbytes * 3 // 2,
            ),
            "rope": (
                lambda _, q=q, k=k, p=pos: rope.rope_(q, k, p, table),
                lambda _, q=q, p=pos: rope.reference_rotate_(q, p, table, None, 1e-5),
                (q.nbytes + k.nbytes) * 2,
            ),
        }
        for name, (ours, theirs, data) in ops.items():
            best = race({"weir": ours, "PyTorch": theirs}, repeats)
            report(f"{shape.name} {name} T={m}", best, 0.0, data)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, nargs="+", default=[len(os.sched_getaffinity(0))])
    parser.add_argument("--repeats", type=int, default=40)
    parser.add_argument("--shape", choices=[s.name for s in SHAPES], action="append")
    parser.add_argument("--decodes", type=int, metavar="SIZE", help="decodes alone, of such heads")
    parser.add_argument("--queries", type=int, nargs="+", default=GROUPS, help="a KV head")
    parser.add_argument("--sequences", type=int, default=24, help="of a thousand tokens")
    parser.add_argument("--no-tiles", action="store_true", help="vectors instead of matrix tiles")
    options = parser.parse_args()
    torch.manual_seed(0)
    if options.no_tiles and (lib := native.library()) is not None:
        lib.use_tiles(0)
    for threads in options.threads:
        native.set_threads(threads)
        torch.set_num_threads(threads)
        roof = native.read_bandwidth(threads)
        print(f"{native.status()}; {threads} threads; torch {torch.__version__}")
        print("memory reads: " + (f"{roof / 1e9:.1f} GB/s" if roof else "not measured"))
        bench(options)


def bench(options: argparse.Namespace) -> None:
    if options.decodes:
        repeats = min(options.repeats, 9)
        return bench_decodes(repeats, options.decodes, options.queries, options.sequences)
    for shape in SHAPES:
        if not options.shape or shape.name in options.shape:
            bench_linears(shape, options.repeats)
            bench_attention(shape, options.repeats)
            bench_rows(shape, options.repeats)


if __name__ == "__main__":
    main()
