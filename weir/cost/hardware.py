"""Rates and latencies that devices sustain, for a roofline model.

They are not data sheet values. A preset with `measured` was fitted to kernels timed on that device;
the others assume that the same shares of the data sheet's rates are reached. Knows no model.
"""

import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy
from msgspec import Struct
from msgspec.structs import replace

from weir.errors import ConfigError
from weir.linux import cores


class Hardware(Struct, frozen=True, kw_only=True):
    """Rates are bytes/s or FLOP/s of bf16 kernels under sustained load; latencies are seconds."""

    name: str
    memory: int  # bytes
    weight_rate: float  # reading the weights of a matrix product with few rows
    matrix_rate: float  # FLOP/s of a matrix product with many rows
    cache_rate: float  # reading KV in decode attention
    attention_rate: float  # FLOP/s of prefill attention
    layer_seconds: float  # fixed cost of a layer's kernels
    step_seconds: float  # fixed cost of a step: launches, inputs, sampling
    link_rate: float = 50e9  # of KV pages to or from main memory (measured on an H200)
    host_rate: float = 76e9  # reading KV in attention on the host's cores
    disk_read: float = 1.68e9
    disk_write: float = 1.29e9
    measured: bool = False


GB, TB, TERA = 10**9, 10**12, 10**12

H100 = Hardware(
    name="h100",
    memory=80 * GB,
    weight_rate=2.55 * TB,
    matrix_rate=709 * TERA,
    cache_rate=3.05 * TB,
    attention_rate=560 * TERA,
    layer_seconds=12e-6,
    step_seconds=0.6e-3,
    measured=True,
)
"""Fitted to one layer's linears at 64 to 8,192 tokens and to FlashInfer's attention kernels."""


def scaled(
    name: str,
    memory: int,
    bandwidth: float,
    flops: float,
    attention: float,
    of: tuple[float, float] = (3.35 * TB, 989 * TERA),
    link: float = 50 * GB,
    host: float = 76 * GB,
) -> Hardware:
    """A device that reaches the same shares of its `bandwidth` (bytes/s) and dense matrix rate
    `flops` (FLOP/s) as the H100 does. of: the H100's own, by default from the data sheet.
    attention: the share of the matrix rate that attention kernels reach."""
    speed = bandwidth / of[0]
    rate = H100.matrix_rate * flops / of[1]
    return replace(
        H100,
        name=name,
        memory=memory,
        weight_rate=H100.weight_rate * speed,
        matrix_rate=rate,
        cache_rate=H100.cache_rate * speed,
        attention_rate=rate * attention,
        link_rate=link,
        host_rate=host,
        measured=False,
    )


PRESETS = {
    hardware.name: hardware
    for hardware in (
        scaled("t4", 16 * GB, 0.32 * TB, 65 * TERA, 0.4, link=12 * GB, host=40 * GB),
        scaled("a10g", 24 * GB, 0.6 * TB, 70 * TERA, 0.6, link=25 * GB, host=160 * GB),
        scaled("a100", 80 * GB, 2.04 * TB, 312 * TERA, 0.6, link=25 * GB),
        H100,
        scaled("h200", 141 * GB, 4.8 * TB, 989 * TERA, 0.8, host=110 * GB),
    )
}


def this_gpu(memory: int, copy: float, product: float) -> Hardware:
    """A GPU from its timed rates: `copy` (bytes/s, reads and writes added) and `product`, of one
    large matrix product (FLOP/s). On an H100 they are 3.03 TB/s and 792 TFLOP/s."""
    return scaled("gpu", memory, copy, product, 0.8, of=(3.03 * TB, 792 * TERA))


def find(name: str) -> Hardware:
    """The preset of that name, or this machine's CPU, measured now. Raises `ConfigError`."""
    if name == "cpu":
        return this_cpu()
    if name not in PRESETS:
        raise ConfigError(f"no hardware {name!r}; there are {', '.join(PRESETS)} and cpu")
    return PRESETS[name]


def this_cpu(seconds: float = 0.2) -> Hardware:
    """This machine's CPU: NumPy's read rate and float32 matrix rate, timed on all cores for about
    `seconds`, times the shares of them that the native kernels reach."""
    threads = cores()
    block = numpy.ones(2**24, numpy.float32)
    square = numpy.ones((512, 512), numpy.float32)
    read = threads * block.nbytes / _seconds(lambda: block.sum(), threads, seconds / 2)
    multiply = threads * 2 * 512**3 / _seconds(lambda: square @ square, threads, seconds / 2)
    return Hardware(
        name="cpu",
        memory=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        weight_rate=read * CPU_SHARES[0],
        matrix_rate=multiply * CPU_SHARES[1],
        cache_rate=read * CPU_SHARES[2],
        attention_rate=multiply * CPU_SHARES[3],
        layer_seconds=70e-6,
        step_seconds=0.5e-3,
        measured=True,
    )


CPU_SHARES = (0.8, 3.0, 0.22, 0.95)
"""Rates of the native kernels (with 4-bit codes) divided by NumPy's: reading weights, matrix
products, reading KV, attention."""


def _seconds(work: Callable[[], object], cores: int, budget: float) -> float:
    """The shortest time in which all cores do `work` once."""
    with ThreadPoolExecutor(cores) as pool:
        best, until = float("inf"), time.perf_counter() + budget
        while time.perf_counter() < until:
            began = time.perf_counter()
            for job in [pool.submit(work) for _ in range(cores)]:
                job.result()
            best = min(best, time.perf_counter() - began)
    return best
