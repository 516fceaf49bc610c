"""Measure the engine alone, in this process, without a server.

Everything is asked at once. The prefix cache is off unless --enable-prefix-caching is given; while
it is off, prefill and decode are told apart by a second run that stops at the first token.

With --workload the named workloads run as they are compared among GPU engines: everything at its
default, the prefix cache on and empty, temperature 1, one table.
"""

from __future__ import annotations

import time
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any

from msgspec import Struct
from msgspec.structs import asdict, replace

import weir
from weir import connect
from weir.bench import datasets, named, reporting
from weir.errors import EngineDead
from weir.llm.outputs import RequestOutput
from weir.options import add_config, config
from weir.params import SamplingParams
from weir.sim.workload import Item, Workload

GREEDY = SamplingParams(temperature=0.0, ignore_eos=True)
USAGE = "weir bench offline [MODEL] [OPTIONS]"
COLUMNS = ("out/s", "peer", "best", "floor", "share")
"""Output tokens per second; then of `named.Reached`, in seconds, the peer, the best known kernels
and the floor; and the floor divided by the time taken."""


class Result(Struct):
    """Token counts, and seconds of the whole run and of prefill alone (None: cache was on)."""

    requests: int
    prompt_tokens: int
    output_tokens: int
    cached_tokens: int
    elapsed: float
    prefill: float | None
    engine: dict[str, Any]

    def lines(self) -> list[str]:
        total = self.prompt_tokens + self.output_tokens
        said = [
            f"Throughput: {self.requests / self.elapsed:.2f} requests/s, "
            f"{total / self.elapsed:.2f} total tokens/s, "
            f"{self.output_tokens / self.elapsed:.2f} output tokens/s",
            f"Total num prompt tokens:  {self.prompt_tokens}",
            f"Total num output tokens:  {self.output_tokens}",
        ]
        if self.prefill is None:
            return [
                *said,
                f"Prefix cache hit rate:    {self.cached_tokens / self.prompt_tokens:.1%}",
            ]
        decoded = self.output_tokens - self.requests  # prefill gives each its first token
        decode = self.elapsed - self.prefill
        said.append(f"Prefill: {self.prompt_tokens / self.prefill:.2f} tokens/s")
        if decoded > 0 and decode > 0:
            said.append(f"Decode:  {decoded / decode:.2f} tokens/s")
        return said


def add_arguments(parser: ArgumentParser) -> None:
    datasets.add_arguments(parser, 16)
    reporting.add_output(parser)
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    parser.add_argument(
        "--workload", nargs="+", default=[], metavar="NAME", help=", ".join(named.NAMES)
    )
    parser.add_argument("--repeat", type=datasets.positive, default=1, help="of each workload (1)")
    add_config(parser, serves=False)


def run(options: Namespace) -> int:
    if options.workload:
        return compare(options)
    cached = getattr(options, "enable_prefix_caching", False)
    settings = config(options, enable_prefix_caching=cached)
    workload = datasets.make(options, lambda: connect.text(settings), settings.seed)
    with weir.LLM(**asdict(settings)) as llm:
        result = measure(llm, workload, cached, not options.quiet)
    print("\n".join(result.lines()))
    reporting.write(options.output_json, result)
    return 0


def compare(options: Namespace) -> int:
    """Run named workloads and show the results beside those of others."""
    settings = config(options)
    vocab = connect.text(settings).vocab
    warm, *made = (named.make(name, vocab) for name in ("fixed:8", *options.workload))
    began = time.perf_counter()
    with weir.LLM(**asdict(settings)) as llm:
        started = time.perf_counter() - began
        _ask(llm, warm, 16, False)
        rows = []
        for workload in made:
            for _ in range(options.repeat):
                llm.flush()
                rows.append(_ask(llm, workload, None, not options.quiet))
    stem = Path(settings.model).name.removesuffix(".json")
    print(f"{stem}, engine made in {started:.1f} s; others on one H100")
    columns = ("s", 8), ("in", 10), ("out", 9), *((name, 8) for name in COLUMNS)
    print(f"{'workload':<16}" + "".join(f"{name:>{width}}" for name, width in columns))
    for row in rows:
        print(row.line(named.REACHED.get(stem, {}).get(row.name)))
    result = {"model": stem, "start": started, "engine": llm.model.info, "runs": rows}
    reporting.write(options.output_json, result)
    return 0


class Run(Struct):
    """One run of a named workload."""

    name: str
    seconds: float
    prompt_tokens: int
    output_tokens: int
    cached_tokens: int

    def line(self, reached: named.Reached | None) -> str:
        others = ""
        if reached is not None:
            others = "".join(f"{s:>8.2f}" for s in (reached.peer, reached.kernels, reached.floor))
            others += f"{reached.floor / self.seconds:>8.0%}"
        return (
            f"{self.name:<16}{self.seconds:>8.2f}{self.prompt_tokens:>10,}"
            f"{self.output_tokens:>9,}{self.output_tokens / self.seconds:>8,.0f}{others}"
        )


def _ask(llm: weir.LLM, workload: Workload, limit: int | None, shown: bool) -> Run:
    """Run a named workload, without detokenising."""
    asked = SamplingParams(temperature=1.0, ignore_eos=True, detokenize=False)
    seconds, outputs = generate(llm, workload, limit, shown, asked)
    return Run(workload.name, seconds, *_tokens(outputs))


def _tokens(outputs: list[RequestOutput]) -> tuple[int, int, int]:
    """The tokens of the prompts, of the answers, and of the prompts found in the cache."""
    return (
        sum(len(output.prompt_token_ids) for output in outputs),
        sum(len(output.outputs[0].token_ids) for output in outputs),
        sum(output.num_cached_tokens for output in outputs),
    )


def measure(llm: weir.LLM, workload: Workload, cached: bool, shown: bool) -> Result:
    """Run whole and, if the cache is off, also prefill alone. Raises `EngineDead` on a failure."""
    if cached:
        generate(llm, Workload("warm-up", [Item([0] * 64, 2)]), None, False)
        prefill = None
    else:
        generate(llm, workload, 1, False)  # touches all memory that the runs will use
        prefill = generate(llm, workload, 1, shown)[0]
    elapsed, outputs = generate(llm, workload, None, shown)
    return Result(len(outputs), *_tokens(outputs), elapsed, prefill, llm.model.info)


def generate(
    llm: weir.LLM,
    workload: Workload,
    limit: int | None,
    shown: bool,
    asked: SamplingParams = GREEDY,
) -> tuple[float, list[RequestOutput]]:
    """Seconds and outputs of the workload, with at most `limit` tokens per answer. Raises
    `EngineDead` if a request fails."""
    prompts = [
        llm.encode(item.prompt) if isinstance(item.prompt, str) else item.prompt
        for item in workload.items
    ]
    params = [replace(asked, max_tokens=limit or item.output) for item in workload.items]
    begin = time.perf_counter()
    outputs = llm.generate(prompts, params, progress=shown)
    seconds = time.perf_counter() - begin
    failed = [choice.error for output in outputs for choice in output.outputs if choice.error]
    if failed:
        raise EngineDead(f"{len(failed)} requests failed: {failed[0]}")
    return seconds, outputs
