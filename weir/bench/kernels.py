"""Check every op on a GPU against its reference, then time it as a share of what the chip reaches.

Memory-bound ops are compared with the chip's own copy, attention over prompts and linears with its
largest matrix product. Times are medians of events around the op, the L2 cache cleared before each;
decodes are timed as a CUDA graph of calls over different keys.
"""

import statistics
from argparse import ArgumentParser, Namespace
from collections.abc import Callable

import numpy as np
import torch
from msgspec import Struct
from rich.console import Console
from rich.table import Table
from torch import Tensor

from weir.bench import reporting
from weir.errors import ConfigError
from weir.ops import sample
from weir.ops.attention import attend, reference_attend, write
from weir.ops.batch import Batch, Place
from weir.ops.fastest import milliseconds
from weir.ops.linear import linear, pack
from weir.ops.mlp import gated, reference_gated
from weir.ops.norm import reference_rms_norm, rms_norm
from weir.ops.prefix import Shared, find
from weir.ops.rope import reference_rotate_, rope_
from weir.spec import AttentionSpec

DTYPE = torch.bfloat16
TOLERANCE = 0.02  # of bfloat16
HEADS, KV_HEADS, SIZE, PAGE = 32, 8, 128, 16  # Llama-3.1-8B
HIDDEN, FFN, VOCAB = 4096, 14336, 128256
DECODES = [(1, 640), (1, 2048), (16, 640), (32, 2048), (256, 1024), (64, 8192), (1, 32768)]
PROMPTS = [(1, 512, 0), (1, 2048, 0), (1, 8192, 0), (4, 512, 2048), (1, 512, 8192),
           (1, 2048, 30000)]  # chunks, tokens, before  # fmt: skip
SHARED = [(16, 16, 2048, 160), (64, 4, 2048, 160)]  # groups, decodes, keys in common, own keys


def median(run: Callable[[], object], repeat: int) -> float:
    """Median milliseconds of a call, after three to warm up, with the cache cleared before each."""
    for _ in range(3):
        run()
    cold = torch.empty(2**28, dtype=torch.uint8, device="cuda")
    return statistics.median(milliseconds((run,), repeat, cold)[0])


def batch_of(lengths: list[int], chunks: list[int]) -> tuple[Tensor, Batch]:
    """Random keys and values on scattered pages, and the batch that reads them."""
    pages = [-(-length // PAGE) for length in lengths]
    order = torch.randperm(sum(pages), device="cuda").int()
    table = torch.zeros(len(lengths), max(pages), dtype=torch.int32, device="cuda")
    slots, used = [], 0
    for s, count in enumerate(pages):
        table[s, :count] = order[used : used + count]
        used += count
        at = torch.arange(lengths[s] - chunks[s], lengths[s], device="cuda")
        slots.append(table[s, at // PAGE].long() * PAGE + at % PAGE)
    bound = torch.tensor([0, *chunks]).cumsum(0).int().cuda()
    kv = torch.randn(sum(pages), 2, KV_HEADS, PAGE, SIZE, device="cuda", dtype=DTYPE)
    length = torch.tensor(lengths, dtype=torch.int32, device="cuda")
    return kv, Batch(bound, length, table, torch.cat(slots), lengths=(min(chunks), max(chunks)))


class Row(Struct):
    op: str
    work: str
    micros: float
    rate: float
    unit: str  # "TB/s" or "TFLOP/s"
    share: float  # of the rate that a copy, or a large matrix product, reaches here
    error: float  # relative


class Report:
    """Rows of the table, and whether all ops were right."""

    def __init__(self, repeat: int):
        self.repeat = repeat
        self.right = True
        big = torch.empty(2**30, dtype=torch.uint8, device="cuda")
        there = torch.empty_like(big)
        copy = median(lambda: there.copy_(big), 10)
        a, b = (torch.randn(8192, 8192, device="cuda", dtype=DTYPE) for _ in "ab")
        product = median(lambda: a @ b, 10)
        self.copy, self.product = 2 * 2**30 / copy / 1e9, 2 * 8192**3 / product / 1e9
        self.rows = [
            Row("copy", "1 GiB", copy * 1e3, self.copy, "TB/s", 1.0, 0.0),
            Row("matrix product", "8192³", product * 1e3, self.product, "TFLOP/s", 1.0, 0.0),
        ]

    def add(
        self,
        op: str,
        work: str,
        run: Callable[[], object],
        error: float,
        *,
        moved: float = 0.0,
        flop: float = 0.0,
        calls: int = 1,
    ) -> None:
        """moved, flop: the bytes that the op must move, or its arithmetic. error: relative. calls:
        of the op in one call of `run`."""
        time = median(run, self.repeat) / calls
        rate = (flop or moved) / time / 1e9
        ceiling, unit = (self.product, "TFLOP/s") if flop else (self.copy, "TB/s")
        self.right &= error < TOLERANCE
        self.rows.append(Row(op, work, time * 1e3, rate, unit, rate / ceiling, error))

    def show(self) -> None:
        table = Table("op", "work", "µs", "reached", "share of ceiling", "error")
        table.title = torch.cuda.get_device_name()
        for row in self.rows:
            wrong = "" if row.error < TOLERANCE else " WRONG"
            rate, share = f"{row.rate:.3g} {row.unit}", f"{row.share:.0%}"
            error = f"{row.error:.1e}{wrong}"
            table.add_row(row.op, row.work, f"{row.micros:.1f}", rate, share, error)
        Console(width=110).print(table)


def distance(got: Tensor, want: Tensor) -> float:
    """The relative error in the Euclidean norm; infinite for NaN."""
    error = (got.float() - want.float()).norm() / want.float().norm()
    return float(error.nan_to_num(torch.inf))


def attention(report: Report) -> None:
    spec = AttentionSpec(HEADS, KV_HEADS, SIZE, SIZE**-0.5)
    works = [([length] * count, [1] * count) for count, length in DECODES]
    works += [([before + n] * count, [n] * count) for count, n, before in PROMPTS]
    works += [([1300] * 200 + [2048], [1] * 200 + [1024])]
    for lengths, chunks in works:
        kv, batch = batch_of(lengths, chunks)
        tokens = sum(chunks)
        q = torch.randn(tokens, HEADS, SIZE, device="cuda", dtype=DTYPE)
        small = [min(length, 2048) for length in lengths[:4]], [min(c, 256) for c in chunks[:4]]
        some_kv, some = batch_of(*small)
        some_q = torch.randn(sum(small[1]), HEADS, SIZE, device="cuda", dtype=DTYPE)
        got, want = (op(some_q, some_kv, some, spec) for op in (attend, reference_attend))
        error = max(distance(got[0], want[0]), distance(got[1], want[1]))
        pairs = sum(
            n * (length - n) + n * (n + 1) / 2 for length, n in zip(lengths, chunks, strict=True)
        )
        many = chunks.count(1) < len(chunks) / 2
        work = f"{len(chunks)}: {chunks[-1]} of {lengths[-1]}"
        if many:
            report.add(
                "prompt attention", work,
                lambda q=q, kv=kv, batch=batch: attend(q, kv, batch, spec),
                error, flop=4.0 * pairs * HEADS * SIZE,
            )  # fmt: skip
        else:
            work += " mixed" if len({*chunks}) > 1 else ""
            moved = 4.0 * sum(lengths) * KV_HEADS * SIZE
            graph, calls = recorded(lambda kv, q=q, batch=batch: attend(q, kv, batch, spec), kv)
            report.add("decode attention", work, graph, error, moved=moved, calls=calls)


def shared_prefixes(report: Report) -> None:
    """Bytes moved count each prefix once."""
    spec = AttentionSpec(HEADS, KV_HEADS, SIZE, SIZE**-0.5)
    for groups, decodes, common, own in SHARED:
        count = groups * decodes
        kv, batch = batch_of([common + own] * count, [1] * count)
        for rows in torch.randperm(count, device="cuda").view(groups, decodes):
            batch.table[rows, : common // PAGE] = batch.table[rows[0], : common // PAGE].clone()
        table, keys = batch.table.cpu().numpy(), np.full(count, common + own - 1)
        found = find(table, np.arange(count), keys, PAGE)
        q = torch.randn(count, HEADS, SIZE, device="cuda", dtype=DTYPE)
        want = attend(q, kv, batch, spec)
        arrays = found.member, found.keys, found.skip
        batch.shared = Shared(*(torch.from_numpy(x).cuda() for x in arrays))
        got = attend(q, kv, batch, spec)
        graph, calls = recorded(lambda kv, q=q, batch=batch: attend(q, kv, batch, spec), kv)
        report.add(
            "shared prefixes", f"{groups} x {decodes}: {common} + {own}", graph,
            max(distance(got[0], want[0]), distance(got[1], want[1])),
            moved=4.0 * (groups * common + count * own) * KV_HEADS * SIZE, calls=calls,
        )  # fmt: skip


def recorded(run: Callable[[Tensor], object], kv: Tensor) -> tuple[Callable[[], None], int]:
    """A CUDA graph of calls with copies of kv that do not all fit the cache, and their number."""
    copies = [kv.clone() for _ in range(max(2, min(12, 2**28 // kv.nbytes)))]
    run(kv)  # compiled before it is recorded
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for copy in copies:
            run(copy)

    return lambda keep=(run, copies): graph.replay(), len(copies)  # keeps what the graph reads


def rows(report: Report) -> None:
    for tokens in (1, 256, 4096):
        x = torch.randn(tokens, HIDDEN, device="cuda", dtype=DTYPE)
        weight = torch.randn(HIDDEN, device="cuda")
        error = distance(rms_norm(x, weight, 1e-5), reference_rms_norm(x, weight, 1e-5))
        report.add(
            "rms_norm", f"{tokens}", lambda x=x, w=weight: rms_norm(x, w, 1e-5), error,
            moved=4.0 * tokens * HIDDEN,
        )  # fmt: skip
        y = torch.randn(tokens, 2 * FFN, device="cuda", dtype=DTYPE)
        error = distance(gated(y, "silu"), reference_gated(y.float(), "silu"))
        report.add(
            "gated", f"{tokens}", lambda y=y: gated(y, "silu"), error, moved=6.0 * tokens * FFN
        )
        fused = torch.randn(tokens, HEADS + 2 * KV_HEADS, SIZE, device="cuda", dtype=DTYPE)
        q, k, v = fused.split((HEADS, KV_HEADS, KV_HEADS), dim=1)
        pos = torch.randint(0, 4096, (tokens,), device="cuda")
        angle = torch.randn(4096, SIZE // 2, device="cuda")
        cos_sin = torch.cat([angle.cos(), angle.sin()], dim=1)
        want = q.clone()
        reference_rotate_(want, pos, cos_sin, None, 1e-6)
        kv = torch.zeros(tokens // PAGE + 1, 2, KV_HEADS, PAGE, SIZE, device="cuda", dtype=DTYPE)
        slots = torch.randperm(len(kv) * PAGE, device="cuda")[:tokens]
        write(kv, k, v, slots)
        got = kv[slots // PAGE, 1, :, slots % PAGE]
        report.add(
            "write", f"{tokens}",
            lambda kv=kv, k=k, v=v, s=slots: write(kv, k, v, s),
            distance(got, v), moved=8.0 * tokens * KV_HEADS * SIZE,
        )  # fmt: skip
        place = Place(kv, slots)
        rope_(q, k, pos, cos_sin, v=v, place=place)
        report.add(
            "rope and write", f"{tokens}",
            lambda q=q, k=k, v=v, pos=pos, t=cos_sin, p=place: rope_(q, k, pos, t, v=v, place=p),
            distance(q, want), moved=4.0 * tokens * (HEADS + 2 * KV_HEADS) * SIZE,
        )  # fmt: skip


def sampling(report: Report) -> None:
    """The error is the share of rows whose token differs from a CPU's choice."""
    cuts = {"": (0, 1.0), "top-k 50": (50, 1.0), "top-p 0.9": (0, 0.9)}
    for count in (1, 32, 256):
        logits = torch.randn(count, VOCAB, device="cuda").mul_(4).to(DTYPE)
        heat = torch.ones(count, device="cuda")
        u = torch.rand(count, device="cuda", dtype=torch.float64)
        for name, (k, p) in cuts.items():
            shares = (torch.full((count,), x, dtype=torch.float64) for x in (p, 0.0))
            cut = (torch.full((count,), k), *shares)
            call = (logits, heat, u, sample.Filters(*(x.cuda() for x in cut)) if name else None)
            few = sample.Filters(*cut)[:8] if name else None
            want = sample.choose(logits[:8].float().cpu(), heat[:8].cpu(), u[:8].cpu(), few).cuda()
            error = float((sample.choose(*call)[:8] != want).float().mean())
            report.add(
                f"sample {name}", f"{count} x {VOCAB}", lambda c=call: sample.choose(*c), error,
                moved=4.0 * count * VOCAB,
            )  # fmt: skip


def linears(report: Report) -> None:
    """Weights of Llama-3.1-8B, which are large, and of Qwen3-0.6B, which are small."""
    for n, k in ((2 * FFN, HIDDEN), (HIDDEN, FFN), (HIDDEN, HIDDEN), (4096, 1024), (1024, 3072)):
        weight = torch.randn(n, k, device="cuda", dtype=DTYPE) / 64
        w = pack(weight)
        for tokens in (1, 16, 64, 256, 2048, 4096):
            x = torch.randn(tokens, k, device="cuda", dtype=DTYPE)
            residual = torch.randn(tokens, n, device="cuda", dtype=DTYPE)
            want = x.float() @ weight.float().T + residual
            error = distance(linear(x, w, residual.clone()), want)
            report.add(
                "linear", f"{tokens} x {k} → {n}", lambda x=x, r=residual, w=w: linear(x, w, r),
                error,
                moved=0.0 if tokens > 256 else 2.0 * weight.numel(),
                flop=2.0 * tokens * weight.numel() if tokens > 256 else 0.0,
            )  # fmt: skip


def add_arguments(parser: ArgumentParser) -> None:
    add = parser.add_argument
    add("--quick", action="store_true", help="fewer repeats")
    parts = list(PARTS)
    add("--only", nargs="+", choices=parts, default=parts, metavar="PART", help=", ".join(parts))
    reporting.add_output(parser)


def run(options: Namespace) -> int:
    """0 if every op was right."""
    if not torch.cuda.is_available():
        raise ConfigError("no CUDA device was found; bench/cpu.py times the kernels of a CPU")
    torch.manual_seed(0)
    report = Report(repeat=10 if options.quick else 50)
    for part in options.only:
        PARTS[part](report)
    report.show()
    result = {"device": torch.cuda.get_device_name(), "rows": report.rows}
    reporting.write(options.output_json, result)
    return 0 if report.right else 1


PARTS: dict[str, Callable[[Report], None]] = {
    "attention": attention,
    "prefixes": shared_prefixes,
    "rows": rows,
    "linears": linears,
    "sampling": sampling,
}
