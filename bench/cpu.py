"""Weir beside llama.cpp and transformers on this CPU, in one run: ratios, not absolute figures.

    python bench/cpu.py [--llama-cpp FOLDER_OF_BINARIES --bf16 MODEL.gguf] [--transformers]

Prompts of 128 random tokens. "prefill" is prompt tokens over the time to generate 1 token each,
"decode" the other 63 over the further time it takes to generate 64. Each side is measured
`--repeats` times, in turn; median and spread are printed. llama.cpp is measured by its own
llama-bench and llama-batched-bench; `llama-quantize --allow-requantize` makes its bf16 file.
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import time
from pathlib import Path

import torch

from weir import build, hub
from weir.config import Config
from weir.core import Request, Sampling

PROMPT, OUTPUT = 128, 64
MODEL = "smollm2-135m"


def ours(engine, batch: int, seed: int) -> tuple[float, float]:
    """(prefill, decode) tokens per second of batches submitted at once."""
    first, whole = (_seconds(engine, batch, seed, count) for count in (1, OUTPUT))
    return batch * PROMPT / first, batch * (OUTPUT - 1) / (whole - first)


def _seconds(engine, batch: int, seed: int, count: int) -> float:
    rng = random.Random(1000 * seed + count)
    began = time.perf_counter()
    sampling = Sampling(temperature=0, max_tokens=count)
    for i in range(batch):
        prompt = [rng.randrange(100, 49000) for _ in range(PROMPT)]
        engine.add(Request(10**6 * seed + 100 * count + i, prompt, sampling, time.monotonic()))
    while engine.busy:
        engine.step()
    return time.perf_counter() - began


def llama(binaries: Path, model: Path, batch: int) -> tuple[float, float]:
    """llama-bench for one sequence (decoding at depth 128), llama-batched-bench for more."""
    if batch == 1:
        command = [binaries / "llama-bench", "-m", model, "-p", PROMPT, "-n", OUTPUT]
        command += ["-d", f"0,{PROMPT}", "-r", 1, "-o", "json"]
        rows = json.loads(_run(command))
        prefill = next(r["avg_ts"] for r in rows if r["n_prompt"] and not r["n_depth"])
        return prefill, next(r["avg_ts"] for r in rows if r["n_gen"] and r["n_depth"])
    command = [binaries / "llama-batched-bench", "-m", model, "-c", batch * 256, "-b", 2048]
    command += ["-ub", 512, "-npp", PROMPT, "-ntg", OUTPUT, "-npl", batch]
    row = next(r for r in _run(command).splitlines() if r.startswith("|") and f" {PROMPT} |" in r)
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    return float(cells[5]), float(cells[7])


def _run(command: list) -> str:
    threads = ["-t", str(len(os.sched_getaffinity(0)))]
    return subprocess.run([*map(str, command), *threads], capture_output=True, text=True).stdout


def theirs(model, batch: int, seed: int) -> tuple[float, float]:
    """transformers' generate, batched, end token suppressed."""
    ids = torch.randint(100, 49000, (batch, PROMPT), generator=torch.Generator().manual_seed(seed))
    options = {"do_sample": False, "pad_token_id": 0, "attention_mask": torch.ones_like(ids)}
    seconds = []
    for count in (1, OUTPUT):
        began = time.perf_counter()
        model.generate(ids, max_new_tokens=count, min_new_tokens=count, **options)
        seconds.append(time.perf_counter() - began)
    return batch * PROMPT / seconds[0], batch * (OUTPUT - 1) / (seconds[1] - seconds[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--llama-cpp", type=Path)
    parser.add_argument("--bf16", type=Path)
    parser.add_argument("--transformers", action="store_true")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--batches", type=int, nargs="*", default=[1, 8, 16, 32])
    args = parser.parse_args()
    source = hub.resolve(MODEL)
    sides = {}
    for name, dtype in (("Weir, weights as in the file", "auto"), ("Weir, bfloat16", "bfloat16")):
        engine = build.engine(Config(model=MODEL, device="cpu", dtype=dtype))
        ours(engine, 16, 1)  # touches memory once
        sides[name] = lambda batch, seed, engine=engine: ours(engine, batch, seed)
    if args.llama_cpp:
        files = {"llama.cpp, the shipped Q4_1": source.path}
        if args.bf16:
            files["llama.cpp, bf16"] = args.bf16
        for name, file in files.items():
            sides[name] = lambda batch, seed, file=file: llama(args.llama_cpp, file, batch)
    if args.transformers:
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(
            source.path.parent, gguf_file=source.path.name, dtype=torch.bfloat16
        )
        sides["transformers, bf16"] = lambda batch, seed: theirs(model, batch, seed)
    threads = torch.get_num_threads()
    print(f"{'tokens/s: median (least to most)':34}{'prefill':>26}{'decode':>26}")
    for batch in args.batches:
        results: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
        for repeat in range(args.repeats):
            for name, side in sides.items():
                torch.set_num_threads(threads if name.startswith("transformers") else 1)
                results[name].append(side(batch, 10 * batch + repeat + 2))
        print(f"{batch} at once")
        for name, pairs in results.items():
            cells = []
            for values in zip(*pairs, strict=True):
                middle = statistics.median(values)
                cells.append(f"{middle:,.0f} ({min(values):,.0f} to {max(values):,.0f})")
            print(f"  {name:32}{cells[0]:>26}{cells[1]:>26}", flush=True)


if __name__ == "__main__":
    main()
