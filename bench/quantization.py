"""What quantised weights and KV cost: perplexity on a CPU, or the time of linears on a GPU.

    python bench/quantization.py [--tokens 16384]
    python bench/quantization.py --layers [--repeat 3]

Perplexity is of prompts of the data folder (WEIR_DATA), in windows of 512 tokens, by the embedded
models: the weights of the file in float32, then rounded again. A layer is that of Llama-3.1-8B; its
linears are recorded as one CUDA graph over several layers, which do not fit the cache.
"""

import argparse
import math
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from weir import connect, hub
from weir.bench.named import data_folder
from weir.config import Config
from weir.models import load as loading
from weir.models.base import Model
from weir.models.checkpoint import GGUFCheckpoint
from weir.ops import linear as linears
from weir.ops.attention import attend, write
from weir.ops.batch import Batch
from weir.ops.coded import BYTES, row_bytes
from weir.ops.linear import Codec, Linear, gated_linear, linear, normed_linear, pack
from weir.ops.quantize import to_codes, to_fp8
from weir.rows import read_rows

MODELS = ("smollm2-135m", "gemma3-270m")
WINDOW = 512
HIDDEN, FFN, QKV = 4096, 14336, 6144  # Llama-3.1-8B
ROWS = (1, 16, 64, 256, 2048)
CPU = torch.device("cpu")
Round = Callable[[Tensor], Tensor]


class Rounded(GGUFCheckpoint):
    """A GGUF file whose layers' weights are rounded as they are read."""

    change: Round = staticmethod(lambda weight: weight)

    def read(self, name: str, out: Tensor, row: int = 0) -> None:
        super().read(name, out, row)
        if name.startswith("layers.") and out.dim() == 2:
            out.copy_(Rounded.change(out))


def model_of(path: Path, change: Round | None) -> Model:
    """The weights of a file in float32, changed; None: as the file has them."""
    if change is None:
        return loading.load(path)
    Rounded.change = staticmethod(change)
    loading.GGUFCheckpoint = Rounded  # type: ignore[misc]
    return loading.load(path, dtype=torch.float32)


def on_8_bits(model: Model) -> None:
    """Let the linears of layers round their inputs to 8-bit floats, as cuBLAS gets them."""
    plain = linears.reference_linear
    linears.reference_linear = lambda x, *rest: plain(to_fp8(x).floats(), *rest)
    for layer in model.layers:
        for name in layer.__slots__:
            w = getattr(layer, name)
            if isinstance(w, Linear):
                ids = torch.arange(w.n)
                setattr(layer, name, Linear(w.n, w.k, Codec.PLAIN, linears.rows(w, ids), w.bias))


def logits(model: Model, ids: Tensor, dtype: torch.dtype) -> Tensor:
    """[T, V] of one sequence, its keys and values in that type."""
    length, spec = len(ids), model.spec
    pos = torch.arange(length)
    bound = torch.tensor([0, length], dtype=torch.int32)
    batch = Batch(bound, bound[1:], torch.zeros(1, 1, dtype=torch.int32), pos)
    x = model.embed(ids, pos)
    for i, layer in enumerate(model.layers):
        row = row_bytes(dtype, spec.head_dim)
        kv = torch.zeros(1, 2, spec.kv_heads, length, row, dtype=torch.uint8)
        kv = kv if dtype in BYTES else kv.view(dtype)
        q, k, v = model.qkv(layer, x, pos)
        assert k is not None and v is not None
        write(kv, k, v, batch.slots)
        x = model.out(layer, x, attend(q, kv, batch, spec.attention[i])[0])
    return model.logits(x)


@torch.inference_mode()
def loss(model: Model, windows: Tensor, dtype: torch.dtype) -> float:
    """Nats a token, the first of each window not counted."""
    total = sum(
        torch.nn.functional.cross_entropy(logits(model, w, dtype)[:-1].float(), w[1:]).item()
        for w in windows
    )
    return total / len(windows)


def text_of(model: str, tokens: int) -> Tensor:
    """Windows of token ids [count, WINDOW] from real prompts."""
    encode = connect.text(Config(model=model)).encode
    file = data_folder() / "lengths" / "prompts.jsonl.gz"
    ids: list[int] = []
    for row in read_rows(file):
        if row["source"] in ("oasst-prompts", "arena-hard-v0.1", "vicuna-80"):
            ids += encode(row["prompt"] + "\n\n", False)
        if len(ids) >= tokens:
            break
    return torch.tensor(ids[: len(ids) // WINDOW * WINDOW]).view(-1, WINDOW)


def perplexities(tokens: int) -> None:
    arms: dict[str, Round | None] = {
        "float32": lambda w: w,
        "as in the file, on a CPU": None,
        "fp8 weights": lambda w: to_fp8(w).floats(),
        "int4, groups of 32": lambda w: to_codes(w, 32).floats(),
        "int4, groups of 64": lambda w: to_codes(w).floats(),
        "fp8 weights and inputs": lambda w: to_fp8(w).floats(),
        "KV int8": lambda w: w,
        "KV int4": lambda w: w,
    }
    kept = {"KV int8": torch.int8, "KV int4": torch.int4}
    table = Table("weights", *MODELS, title=f"perplexity of about {tokens} tokens")
    rows: dict[str, list[float]] = {name: [] for name in arms}
    plain = linears.reference_linear
    for name in MODELS:
        windows = text_of(name, tokens)
        path = hub.resolve(name, None, None).path
        for arm, change in arms.items():
            model = model_of(Path(path), change)
            if arm.endswith("inputs"):
                on_8_bits(model)
            rows[arm].append(math.exp(loss(model, windows, kept.get(arm, torch.float32))))
            linears.reference_linear = plain
    for arm, found in rows.items():
        base = rows["float32"]
        shown = [f"{p:.2f} ({p / b - 1:+.2%})" for p, b in zip(found, base, strict=True)]
        table.add_row(arm, *shown)
    Console(width=100).print(table)


CODECS: dict[str, Callable[[Tensor], Linear]] = {
    "bfloat16": pack,
    "fp8": lambda w: linears.pack_fp8(to_fp8(w)),
    "int4": lambda w: linears.pack_codes(to_codes(w)),
}


def layer_times(repeat: int) -> None:
    table = Table("rows", *CODECS, title=f"{torch.cuda.get_device_name()}: µs a layer's linears")
    shapes = {"qkv": (QKV, HIDDEN), "out": (HIDDEN, HIDDEN), "gate_up": (2 * FFN, HIDDEN)}
    shapes["down"] = (HIDDEN, FFN)
    norm, cells = torch.ones(HIDDEN, device="cuda"), {}
    for codec, make in CODECS.items():
        layers = [
            {
                name: make(torch.randn(n, k, device="cuda", dtype=torch.bfloat16) / k**0.5)
                for name, (n, k) in shapes.items()
            }
            for _ in range(4)
        ]
        for m in ROWS:
            x = torch.randn(m, HIDDEN, device="cuda", dtype=torch.bfloat16)
            cells[codec, m] = [
                microseconds(lambda m=m, x=x, layers=layers: [run(w, x, norm) for w in layers]) / 4
                for _ in range(repeat)
            ]
    for m in ROWS:
        found = [cells[codec, m] for codec in CODECS]
        table.add_row(
            f"{m}", *(f"{statistics.median(f):.1f} ({min(f):.1f} to {max(f):.1f})" for f in found)
        )
    Console(width=100).print(table)


def run(w: dict[str, Linear], x: Tensor, norm: Tensor) -> Tensor:
    qkv = normed_linear(x, norm, 1e-5, w["qkv"])
    x = linear(qkv[:, :HIDDEN], w["out"], x.clone())
    return gated_linear(normed_linear(x, norm, 1e-5, w["gate_up"]), "silu", w["down"], x)


def microseconds(work: Callable[[], object]) -> float:
    """Of one replay of the work as a CUDA graph, the median of ten."""
    work()
    torch.cuda.synchronize()
    graph, times = torch.cuda.CUDAGraph(), []
    with torch.cuda.graph(graph):
        work()
    graph.replay()
    for _ in range(10):
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in "ab")
        start.record()
        graph.replay()
        stop.record()
        times.append((start, stop))
    torch.cuda.synchronize()
    return statistics.median(1e3 * start.elapsed_time(stop) for start, stop in times)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=16384)
    parser.add_argument("--layers", action="store_true", help="time linears on a GPU")
    parser.add_argument("--repeat", type=int, default=3)
    options = parser.parse_args()
    if not options.layers:
        perplexities(options.tokens)
    elif torch.cuda.is_available():
        layer_times(options.repeat)
    else:
        print("--layers needs a CUDA device", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
