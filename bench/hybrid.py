"""Attention in main memory beside the GPU's: where it pays, by the simulator.

    python bench/hybrid.py [--requests N] [CASE ...]
    python bench/hybrid.py --neo [--requests N]
    python bench/hybrid.py --loads 0.6 0.95 1.1 [--requests N] [DEVICE ...]

Every arm is the real scheduler over priced devices: `off` has the GPU's KV cache alone, `auto` and
`all` have main memory besides. All requests are there at once, so what counts is how fast they end.
With --neo, what NEO (arXiv 2411.01142) reports is predicted: gains on A10Gs with ever larger hosts,
and the rate that keeps to a mean latency a token, found by bisection. With --loads, requests come
at parts of the rate that `off` serves when all are there at once.
"""

import argparse
import contextlib
import io
import json
import os
import tempfile
from pathlib import Path

from msgspec.structs import replace

from weir.cli import main
from weir.cost.hardware import PRESETS

TRACES = Path(os.environ.get("WEIR_DATA", ".")) / "traces"


def azure(name: str) -> list[str]:
    return ["--trace", "azure", "--trace-path", str(TRACES / f"azure2023_{name}.csv.gz")]


def fixed(prompt: int, output: int, spread: float = 0.1) -> list[str]:
    lengths = ["--random-input-len", str(prompt), "--random-output-len", str(output)]
    return ["--trace", "random", "--random-range-ratio", str(spread), *lengths]


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
        more += ["--request-rate", str(rate or "inf")]  # else traces have their own times
        if main(["simulate", *flags, *count, *more, "--output-json", str(file)]):
            raise SystemExit("the simulation failed")
        return json.loads(file.read_text())


def run() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cases", nargs="*", help="parts of names")
    parser.add_argument("--requests", type=int, default=400)
    parser.add_argument("--neo", action="store_true")
    parser.add_argument("--loads", type=float, nargs="+", metavar="X", help="parts of a rate")
    parser.add_argument("--rates", type=float, nargs="+", metavar="R", help="of a stream, instead")
    options = parser.parse_args()
    if options.neo:
        return neo(options.requests)
    if options.loads:
        return loads(options)
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


SMALL = {
    "t4": ("llama-2-7b", "432MiB", 250),
    "a10g": ("llama-3.1-8b", "3300MiB", 1000),
    "h100": ("qwen3-32b", "7500MiB", 1000),
    "h200": ("qwen3-32b", "7500MiB", 1000),
}
"""Models that leave little room on a device, that room, and tokens in."""


def loads(options: argparse.Namespace) -> None:
    """What `auto` serves a second and takes for a token, waiting included, over `off`."""
    print(f"| device, in + out | all at once | {' | '.join(f'{x:g}' for x in options.loads)} |")
    print("|---" * (len(options.loads) + 2) + "|", flush=True)
    for device, (model, room, prompt) in SMALL.items():
        if options.cases and device not in options.cases:
            continue
        for output in (50, 100, 200, 400):
            flags, cells = case(model, device, room, fixed(prompt, output, 0.5)), []
            alone = result(flags, "off", options.requests)
            for part in (0.0, *options.loads):
                rate = part * alone["request_throughput"]
                off = result(flags, "off", options.requests, rate) if part else alone
                on = result(flags, "auto", options.requests, rate)
                names = "request_throughput", "mean_ptl_ms"
                cells.append(", ".join(f"{on[name] / off[name]:.2f}" for name in names))
            print(f"| {device}, {prompt:,} + {output} | {' | '.join(cells)} |", flush=True)


HOSTS = {"g5.2xlarge": 25, "g5.4xlarge": 50, "g5.8xlarge": 100, "g5.16xlarge": 200}
"""GB/s of memory: of the 200 that the paper says, as much as a host has of the cores."""
GAINS = {"g5.2xlarge": 12.2, "g5.4xlarge": 13.3, "g5.8xlarge": 29.7, "g5.16xlarge": 79.3}
"""Most that attention on the host added to the rate of requests, %."""
PAIR = replace(
    PRESETS["h100"],
    name="2xh100",
    memory=2 * PRESETS["h100"].memory,
    weight_rate=2 * PRESETS["h100"].weight_rate,
    matrix_rate=2 * PRESETS["h100"].matrix_rate,
    cache_rate=2 * PRESETS["h100"].cache_rate,
    attention_rate=2 * PRESETS["h100"].attention_rate,
    host_rate=2 * PRESETS["h100"].host_rate,
    layer_seconds=50e-6,
)
"""Each layer on both, whose results are added up twice a layer in some 20 us."""
LATENCY = [
    ("T4, 7B, summaries", case("llama-2-7b", "t4", "432MiB", fixed(350, 45, 0.4)), 1.0, 563),
    ("A10G, 8B, code", case("llama-3.1-8b", "a10g", "3300MiB", azure("code")), 2.0, 6.4),
    ("two H100s, 70B, code", case("llama-3.1-70b", "2xh100", "10GiB", azure("code")), 2.0, 14.3),
]
"""Seconds a token, and % that the rate at which these are kept to rose by."""


def neo(requests: int) -> None:
    """What the paper reports, beside what the simulator says of such machines."""
    print("| A10G, 8B, 1,000 tokens in, in | paper | at 50, 100, 200, 400 tokens out | best |")
    print("|---|---|---|---|", flush=True)
    for host, bandwidth in HOSTS.items():
        rate = 0.8 * bandwidth * 1e9
        PRESETS[host] = replace(PRESETS["a10g"], name=host, host_rate=rate)
        gains = []
        for output in (50, 100, 200, 400):
            flags = case("llama-3.1-8b", host, "3300MiB", fixed(1000, output))
            off, on = (
                result(flags, kind, requests)["request_throughput"] for kind in ("off", "auto")
            )
            gains.append(100 * (on / off - 1))
        cells = ", ".join(f"{gain:+.0f}" for gain in gains)
        print(f"| {host} | {GAINS[host]:+.1f} % | {cells} | {max(gains):+.1f} % |", flush=True)
    PRESETS["2xh100"] = PAIR
    print("\n| requests/s at a mean latency a token | paper | off | auto | predicted |")
    print("|---|---|---|---|---|", flush=True)
    for name, flags, seconds, paper in LATENCY:
        off, on = (sustained(flags, kind, requests, seconds) for kind in ("off", "auto"))
        gain = 100 * (on / off - 1)
        print(
            f"| {name}, {seconds:g} s | {paper:+.1f} % | {off:.2f} | {on:.2f} | {gain:+.0f} % |",
            flush=True,
        )


def sustained(flags: list[str], attention: str, requests: int, seconds: float) -> float:
    """The rate of arrivals, to 2 %, up to which a token takes so long in the mean at most."""
    low, high = 0.01, 100.0
    while high > 1.02 * low:
        rate = (low * high) ** 0.5
        kept = result(flags, attention, requests, rate)["mean_ptl_ms"] <= 1000 * seconds
        low, high = (rate, high) if kept else (low, rate)
    return low


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
