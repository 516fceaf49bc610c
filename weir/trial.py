"""Times the steps of a model on this CPU, by running its first layers as the engine will.

All weights are in main memory here, wherever they will be offloaded to.
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
"""Weights that the layers must have together, so that no CPU cache holds them between steps."""
ROWS, TOKENS = (1, 4, 16, 64), (256, 1024)
"""Tokens of the timed steps: of decodes, and of prompt chunks."""
CHUNK, SOME, PAGE = 64, 4, 16
"""Tokens of a prompt chunk, requests with which attention is timed, and tokens of a KV page."""
SHORT, LONG = 16, 512
"""Context of the decodes of timed steps, and of the requests with which attention is timed."""
REPEATS, BUDGET = 5, 0.2
"""Most times that a step is run, and seconds after which it is not run again."""


def timed(
    machine: Machine, whole: Spec, first: Callable[[int], Model], device: Any, dtype: Any
) -> Machine:
    """`machine` with the measured times of a layer's linears, of attention and of the rest of a
    step, for the model `whole`. first: makes the model with only its first n layers. device: the
    CPU. dtype: of keys and values. Takes a few seconds for a large model."""
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
