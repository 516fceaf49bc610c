"""What steps of a model take on this CPU: its first layers, run as the engine will run them.

Knows nothing of where weights will lie: here they are in main memory.
"""

import time
from collections.abc import Callable
from typing import Any

from msgspec.structs import replace

from weir.core import Tier
from weir.cost.machine import Machine
from weir.cost.profile import Bench
from weir.cost.work import Work, cache_bytes, layer_weights
from weir.executor.local import Local
from weir.models.base import Model, tensors
from weir.runtime.runner import Runner
from weir.runtime.store import Store
from weir.spec import Spec

COLD = 192 << 20
"""Weights to go through before one is met again, so that no cache holds them."""
ROWS, TOKENS = (1, 4, 16, 64), (256, 1024)
"""Of the steps that are timed: those of decodes, and of chunks of prompts."""
CHUNK, SOME, PAGE = 64, 4, 16
"""Tokens of such a chunk; how many requests attention is timed with, each of `LONG` tokens."""
SHORT, LONG = 16, 512
REPEATS, BUDGET = 5, 0.2
"""Times that a step is run, and the seconds after which it is not run again."""


def timed(
    machine: Machine, whole: Spec, first: Callable[[int], Model], device: Any, dtype: Any
) -> Machine:
    """`machine` with what the layers of a model, attention and all else of a step take, timed
    apart. first: makes the model of so many of its layers. dtype: of keys and values. Takes a
    second, some for a large model."""
    count = min(whole.layers, max(2, COLD // layer_weights(whole)))
    model = first(count)
    spec, layers = model.spec, list(model.layers)
    held = sum(tensor.nbytes for layer in layers for tensor in tensors(layer))
    context = min(spec.context, LONG)
    chunk = min(CHUNK, context // 2)
    pages = max(ROWS[-1], TOKENS[-1] // chunk * -(-chunk // PAGE), SOME * context // PAGE)
    store = Store(spec.attention, PAGE, {Tier.CPU: pages}, {Tier.CPU: device}, dtype)
    runner = Runner(model, store, context, device, ROWS[-1])
    executor = Local(runner, tokens=TOKENS[-1], requests=ROWS[-1], context=context, threads=1)
    steps = {n: Work(contexts=[SHORT] * n) for n in ROWS}
    steps |= {n: Work(prompts=[(chunk, 0)] * (n // chunk)) for n in TOKENS}
    start = context - chunk
    bench = Bench(executor)
    whole_steps = {n: _best(bench, work) for n, work in steps.items()}
    decodes = _best(bench, Work(contexts=[context] * SOME)) - whole_steps[SOME]
    prompts = _best(bench, Work(prompts=[(chunk, start)] * SOME))
    prompts -= _best(bench, Work(prompts=[(chunk, 0)] * SOME))
    model.layers = layers[:1]
    one = {n: _best(bench, work) for n, work in steps.items()}
    bench.close()
    executor.close()
    layer = {n: max(1e-6, (whole_steps[n] - one[n]) / max(1, count - 1)) for n in steps}
    read = SOME * (context - SHORT) * cache_bytes(spec, dtype.itemsize)
    pairs = SOME * chunk * start * count
    return replace(
        machine,
        layer=tuple(layer.items()),
        rest=tuple((n, max(1e-6, one[n] - layer[n])) for n in ROWS),
        gpu_cache=read / max(1e-6, decodes),
        prompt_attention=4 * spec.heads * spec.head_dim * pairs / max(1e-6, prompts),
        layer_bytes=held / count,
    )


def _best(bench: Bench, work: Work) -> float:
    """The least seconds of several runs, after one to warm up."""
    bench.seconds(work)
    best, until = bench.seconds(work), time.perf_counter() + BUDGET
    for _ in range(REPEATS - 1):
        if time.perf_counter() < until:
            best = min(best, bench.seconds(work))
    return best
