"""Requests with a grammar beside free ones: python bench/beside.py --model M [--batch 64]

Arms, in turn: all free, all with a grammar that goes on for ever, half and half. No prompt is
shared and every answer has as many tokens, so an arm's time says what masks cost, and the free
requests' own time in the last arm what they cost others. What follows the options are settings:
field=value.

With `--split` the engine runs in this process, without a client, and what is printed is where the
time of its thread goes: milliseconds a step.
"""

import argparse
import asyncio
import statistics
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import weir
from weir import build, connect
from weir.client import Client
from weir.config import load
from weir.core import Request
from weir.params import SamplingParams, StructuredOutputs

ENDLESS = r"[a-z0-9 ,.]*which is the end that no model writes"
"""Of few states, as most of a usual answer has; of `[a-z0-9 ,.]{4000,}` every mask is a new one."""
ARMS = {"free": (True, True), "masked": (False, False), "half": (True, False)}


async def run(client: Client, arm: str, batch: int, tokens: int, regex: str) -> list[float]:
    """Tokens a second: of all, and of each free one."""
    asked = StructuredOutputs(regex=regex)
    free = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True)
    masked = SamplingParams(
        temperature=0, max_tokens=tokens, ignore_eos=True, structured_outputs=asked
    )
    grammar = await client.compile(masked)
    kinds = [ARMS[arm][number % 2] for number in range(batch)]
    began = time.perf_counter()

    async def one(number: int, is_free: bool) -> float:
        prompt = f"{number * 7919} is the number of this prompt, which is its own."
        stream = client.submit(
            prompt, free if is_free else masked, grammar=None if is_free else grammar
        )
        count = sum([len(output.token_ids) async for output in stream])
        assert count == tokens, f"{count} tokens of {tokens}"
        return time.perf_counter() - began

    ends = await asyncio.gather(*(one(number, kind) for number, kind in enumerate(kinds)))
    alone = [end for end, is_free in zip(ends, kinds, strict=True) if is_free]
    return [batch * tokens / max(ends), tokens / max(alone, default=1.0)]


async def measure(options: argparse.Namespace, settings: dict[str, str]) -> None:
    rates: dict[str, list[list[float]]] = {arm: [] for arm in ARMS}
    async with weir.AsyncLLM(options.model, **settings) as llm:
        for turn in range(options.rounds + 1):
            for arm in ARMS:
                found = await run(llm.client, arm, options.batch, options.tokens, options.regex)
                if turn:  # the first warms up
                    rates[arm].append(found)
    middle = {
        arm: [statistics.median(column) for column in zip(*of, strict=True)]
        for arm, of in rates.items()
    }
    print(f"{options.batch} requests of {options.tokens} tokens, median of {options.rounds} rounds")
    for arm, (every, _) in middle.items():
        spread = [rate[0] for rate in rates[arm]]
        print(
            f"{arm:7} {every:8.0f} tokens/s ({min(spread):.0f} to {max(spread):.0f})  "
            f"{every / middle['free'][0]:.3f} of free alone"
        )
    beside = middle["half"][1] / middle["free"][1]
    print(f"free ones beside masked: {beside:.3f} of alone, each")


def split(options: argparse.Namespace, settings: dict[str, str]) -> None:
    config = load({"model": options.model} | settings, {})
    text, compiler, engine = connect.text(config), connect.compiler(config), build.engine(config)
    grammar = compiler.compile(StructuredOutputs(regex=options.regex))
    spent: Counter[str] = Counter()

    def timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            began = time.perf_counter()
            try:
                return function(*arguments)
            finally:
                spent[name] += time.perf_counter() - began

        return call

    scheduler, executor, library = engine.scheduler, engine.executor, engine.library
    parts = {"follow": (scheduler, "commit"), "masks": (scheduler, "masks")}
    parts |= {"choose": (executor, "choose"), "plan": (scheduler, "plan")}
    parts |= {"launch": (executor, "submit"), "renew": (library, "renew")}
    for name, (owner, method) in parts.items():
        setattr(owner, method, timed(name, getattr(owner, method)))
    params = SamplingParams(temperature=0, ignore_eos=True)
    wished = params.sampling(index=0, seed=0, eos=[], max_tokens=options.tokens)
    columns = ("step", "device", *parts, "wait")
    print(f"{'ms':7} " + " ".join(f"{column:>7}" for column in columns))
    for arm, kinds in [("warm-up", ARMS["half"]), *ARMS.items()]:
        for number in range(options.batch):
            prompt = text.encode(f"{number * 7919} is the number of this prompt, which is its own.")
            of = None if kinds[number % 2] else grammar
            engine.add(Request(number, list(prompt), wished, 0.0, grammar=of))
        spent.clear()
        began, before = time.perf_counter(), engine.stats().step_seconds
        steps, device = sum(before.counts), before.sum
        while engine.busy:
            engine.step()
        took, after = time.perf_counter() - began, engine.stats().step_seconds
        told = [took, after.sum - device, *(spent[name] for name in parts)]
        told.append(took - sum(told[2:]))
        landed = (sum(after.counts) - steps) / 1e3
        print(f"{arm:7} " + " ".join(f"{value / landed:7.3f}" for value in told), flush=True)
    compiler.close()
    engine.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--regex", default=ENDLESS, help="that no answer ends")
    parser.add_argument("--split", action="store_true", help="where the engine's time goes")
    parser.add_argument("settings", nargs="*", metavar="field=value")
    options = parser.parse_args()
    settings = dict(setting.split("=", 1) for setting in options.settings)
    if options.split:
        split(options, settings)
    else:
        asyncio.run(measure(options, settings))


if __name__ == "__main__":
    main()
