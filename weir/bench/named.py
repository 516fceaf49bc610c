"""The workloads on which GPU engines are compared, and the results of other engines.

Prompts are random token ids, EOS is ignored, the temperature is 1. The lengths of two workloads
come from the file `bench/workloads.json` in the folder that WEIR_DATA names.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import NamedTuple

from weir.errors import ConfigError
from weir.sim.workload import Item, Workload

RECORDED = ("nano_256", "azure_conv_1000")
NAMES = (*RECORDED, "gsp", "fixed:N")
EDGE = 1000  # ids at either end of a vocabulary that may be special


class Reached(NamedTuple):
    """Seconds on one H100: of the better of vLLM 0.26.0 and SGLang 0.5.16, and calculated for the
    same schedule with all bytes and FLOP at the chip's peak rates (floor) or with the best known
    kernels."""

    peer: float
    floor: float
    kernels: float


REACHED = {
    "llama-3.1-8b": {
        "nano_256": Reached(16.91, 13.2, 15.2),
        "azure_conv_1000": Reached(50.74, 39.4, 43.2),
        "fixed:256": Reached(7.21, 5.5, 6.4),
        "fixed:1": Reached(1.68, 1.27, 1.34),
        "gsp": Reached(14.1, 6.7, 7.5),
    },
    "qwen3-0.6b": {"nano_256": Reached(7.89, 5.4, 5.8), "fixed:1": Reached(0.63, 0.11, 0.12)},
}
"""Name of the model's file or folder → workload → result."""


class Latency(NamedTuple):
    """Milliseconds to the first token and between tokens, as a client saw them."""

    ttft_p50: float
    ttft_p99: float
    itl_p50: float
    itl_p99: float
    itl_max: float


REACHED_ONLINE = {
    "llama-3.1-8b": {
        8.0: Latency(56, 244, 7.9, 50.1, 78),
        12.0: Latency(66, 286, 8.9, 52.9, 57),
        16.0: Latency(97, 425, 11.3, 73.7, 80),
    }
}
"""vLLM 0.26.0 on one H100 with `azure_conv_1000`: model → requests/s (Poisson) → result."""


def make(name: str, vocab: int, seed: int = 1) -> Workload:
    """The workload of that name, for a vocabulary of that size. Raises `ConfigError`."""
    random = Random(seed)

    def ids(count: int) -> list[int]:
        return [random.randrange(EDGE, vocab - EDGE) for _ in range(count)]

    kind, _, count = name.partition(":")
    if vocab <= 2 * EDGE:
        raise ConfigError(f"the named workloads need more than {2 * EDGE} tokens, not {vocab}")
    if kind == "fixed" and count.isdecimal() and int(count) > 0:
        return Workload(name, [Item(ids(512), 256) for _ in range(int(count))])
    if name == "gsp":
        return Workload(name, _shared(ids))
    if name in RECORDED:
        return Workload(name, [Item(ids(prompt), output) for prompt, output in _lengths(name)])
    raise ConfigError(f"there is no workload {name}: choose from {', '.join(NAMES)}")


def _shared(ids: Callable[[int], list[int]]) -> list[Item]:
    """64 groups of 16 requests that share 2,048 tokens and have 128 own ones, in random order."""
    prefixes = [ids(2048) for _ in range(64)]
    items = [Item(prefix + ids(128), 64) for _ in range(16) for prefix in prefixes]
    Random(2).shuffle(items)
    return items


def data_folder() -> Path:
    """The benchmarks' data: the folder that WEIR_DATA names. Raises `ConfigError`."""
    if folder := os.environ.get("WEIR_DATA"):
        return Path(folder)
    raise ConfigError("WEIR_DATA is not set: it names the folder with the benchmarks' data")


def _lengths(name: str) -> list[tuple[int, int]]:
    """Prompt and output tokens of each request. Raises `ConfigError`."""
    file = data_folder() / "bench" / "workloads.json"
    try:
        return [(prompt, output) for prompt, output in json.loads(file.read_text())[name]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{file}: lengths of {name} cannot be read: {error}") from None
