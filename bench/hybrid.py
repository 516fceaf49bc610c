"""Attention in main memory beside the GPU's: where it pays, by the simulator.

    python bench/hybrid.py [--requests N] [CASE ...]

Every arm is the real scheduler over priced devices: `off` has the GPU's KV cache alone, `auto` and
`all` have main memory besides. All requests are there at once, so what counts is how fast they end.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import tempfile
from pathlib import Path

from weir.cli import main

TRACES = Path(os.environ.get("WEIR_DATA", ".")) / "traces"


def azure(name: str) -> list[str]:
    return ["--trace", "azure", "--trace-path", str(TRACES / f"azure2023_{name}.csv.gz")]


def fixed(prompt: int, output: int) -> list[str]:
    lengths = ["--random-input-len", str(prompt), "--random-output-len", str(output)]
    return ["--trace", "random", "--random-range-ratio", "0.1", *lengths]


def case(model: str, hardware: str, room: str, workload: list[str]) -> list[str]:
    """room: of the GPU's KV cache."""
    return [model, "--hardware", hardware, "--kv-cache-memory", room, *workload]


CASES = {
    "T4, 7B, 864 tokens, 250 + 50": case("llama-2-7b", "t4", "432MiB", fixed(250, 50)),
    **{
        f"A10G, 8B, 26k tokens, 1,000 + {n}": case(
            "llama-3.1-8b", "a10g", "3300MiB", fixed(1000, n)
        )
        for n in (50, 100, 200, 400)
    },
    "A10G, 8B, 26k tokens, code": case("llama-3.1-8b", "a10g", "3300MiB", azure("code")),
    "H200, 32B, 30k tokens, code": case("qwen3-32b", "h200", "7500MiB", azure("code")),
    "H200, 32B, 30k tokens, chat": case("qwen3-32b", "h200", "7500MiB", azure("conv")),
    "H200, 32B, 10k tokens, chat": case("qwen3-32b", "h200", "2500MiB", azure("conv")),
    "H200, 32B, 10k tokens, 250 + 50": case("qwen3-32b", "h200", "2500MiB", fixed(250, 50)),
}


def result(flags: list[str], attention: str, requests: int, rate: float = 0.0) -> dict[str, float]:
    """rate: at which they come; 0: all at once."""
    more = [] if attention == "off" else ["--cpu-cache", "100GiB", "--cpu-attention", attention]
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        file = Path(folder) / "result.json"
        count = ["--num-prompts", str(requests), "--max-model-len", "8192", "--ranker", "none"]
        count += ["--percentile-metrics", "ttft,tpot,ptl"]
        more += ["--request-rate", str(rate)] if rate else []
        if main(["simulate", *flags, *count, *more, "--output-json", str(file)]):
            raise SystemExit("the simulation failed")
        return json.loads(file.read_text())


def run() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cases", nargs="*", help="parts of names")
    parser.add_argument("--requests", type=int, default=400)
    parser.add_argument("--rates", type=float, nargs="+", metavar="R", help="of a stream, instead")
    options = parser.parse_args()
    if options.rates:
        return stream(options)
    print("| case | off, req/s | auto / off | all / off | ms between tokens: off, auto, all |")
    print("|---|---|---|---|---|", flush=True)
    for name, flags in CASES.items():
        if options.cases and not any(part in name for part in options.cases):
            continue
        arms = [result(flags, kind, options.requests) for kind in ("off", "auto", "all")]
        rates = [arm["request_throughput"] for arm in arms]
        gains = [f"{rate / rates[0]:.2f}" for rate in rates[1:]]
        gaps = ", ".join(f"{arm['median_tpot_ms']:.0f}" for arm in arms)
        print(f"| {name} | {rates[0]:.2f} | {' | '.join(gains)} | {gaps} |", flush=True)


def stream(options: argparse.Namespace) -> None:
    """Seconds a request takes for each token of its answer, at several rates of arrival."""
    print(f"| case, s a token at | {' | '.join(f'{rate:g}/s' for rate in options.rates)} |")
    print("|---" * (len(options.rates) + 1) + "|")
    for name, flags in CASES.items():
        if options.cases and not any(part in name for part in options.cases):
            continue
        for kind in ("off", "auto"):
            arms = [result(flags, kind, options.requests, rate) for rate in options.rates]
            took = [f"{arm['mean_ptl_ms'] / 1000:.2f}" for arm in arms]
            print(f"| {name}, {kind} | {' | '.join(took)} |", flush=True)


if __name__ == "__main__":
    run()
