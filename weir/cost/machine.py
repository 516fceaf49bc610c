"""A computer with three memories: what its GPU, its main memory, its disk and the links between
them hold and sustain. Only offloading looks at a machine this way; it knows no model.
"""

import io
import mmap
import os
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from msgspec import Struct
from msgspec.structs import replace

from weir.cost.hardware import CPU_SHARES, GB, PRESETS, TB, TERA, Hardware, this_cpu
from weir.errors import ConfigError
from weir.linux import cores

ENDLESS = 1e30
"""A rate that never limits."""
ATTENTION = 0.8
"""The share of a CPU's read bandwidth that its attention over decodes reaches."""
CODES = 27e9
"""Bytes/s of KV, as if in 16 bits, that a core makes of codes (16 cores of a Xeon at once); one is
the GPU's."""
UNPACKING, CODE_ROWS = 0.5, 256
"""Of a GPU's rate of reading weights, what numbers it makes of 4-bit codes (prompts of OPT-175B in
lanes of 1,024 tokens, H200); rows for which it need not (ops/triton/codes.py)."""
ROWS = 67e6
"""Keys or values, of a head and a token, that a GPU writes to pages of its host in a second, in
whatever type (prompts of OPT-6.7B in 16 and 4 bits, H200: 60 to 76)."""
READERS, BLOCK, PASSES = 4, 4 << 20, 4
"""Threads that time a disk, bytes that each reads at once, and times that they read all."""

TAKEN = 1 << 28
"""Bytes of a GPU that are neither weights, KV nor activations."""

Curve = tuple[tuple[int, float], ...]
"""Rows, and seconds that they take."""


def at(curve: Curve, rows: float) -> float:
    """Seconds of so many rows: between those timed on a line, beyond them in proportion."""
    counts, seconds = zip(*curve, strict=True)
    return float(np.interp(rows, counts, seconds) * max(1.0, rows / counts[-1]))


class Machine(Struct, frozen=True, kw_only=True):
    """Sizes are bytes; rates bytes/s, where they are of KV as stored, or FLOP/s; under load."""

    name: str
    gpu_memory: int
    gpu_taken: int = 0  # of it, by libraries and for choosing tokens
    cpu_memory: int
    disk: int
    to_gpu: float  # CPU memory to GPU, pinned
    to_cpu: float  # GPU to CPU memory
    cache_to_cpu: float  # the same for the KV of a prompt
    cache_rows: float = ENDLESS  # keys or values of a head and a token of it a second, besides
    both_ways: float = ENDLESS  # both directions together
    disk_read: float
    disk_write: float
    cpu_read: float = ENDLESS  # CPU memory, for copies and attention together
    cpu_cache: float  # KV read by decode attention on the CPU
    cpu_codes: float = ENDLESS  # KV, as if in 16 bits, that the CPU makes of codes for attention
    gpu_weights: float  # GPU memory, reading weights
    gpu_codes: float = ENDLESS  # 16-bit numbers that the GPU makes of 4-bit codes
    code_rows: int = 0  # rows up to which it multiplies codes as they are
    prompt_matrix: float  # FLOP/s of linears over prompts
    decode_matrix: float  # FLOP/s of linears over decodes, once weights are read fast enough
    prompt_attention: float  # FLOP/s
    gpu_cache: float  # KV read by decode attention on the GPU
    layer_seconds: float = 0.0  # of one layer's kernels for one batch, however little they do
    layer: Curve = ()  # of a layer of one model's linears, timed: instead of the rates of products
    rest: Curve = ()  # of what is not in its layers, by rows that sample
    layer_bytes: float = 0.0  # of its weights
    alone: bool = False  # there is no GPU: what is said of one is of the CPU and its memory


T4 = Machine(
    name="t4",
    gpu_memory=16 * GB,
    cpu_memory=208 * GB,
    disk=1500 * GB,
    to_gpu=12.89 * GB,
    to_cpu=4.82 * GB,
    cache_to_cpu=0.97 * GB,
    disk_read=2 * GB,
    disk_write=1 * GB,
    cpu_cache=12.3 * GB,
    gpu_weights=0.25 * TB,
    gpu_codes=25 * GB,
    prompt_matrix=21.24 * TERA,
    decode_matrix=4.3 * TERA,
    prompt_attention=5.0 * TERA,
    gpu_cache=79 * GB,
)
"""FlexGen's machine, with the constants its authors fitted to runs of their engine there. Their
attention multiplies over whole squares, so its rate is halved here; their fitted disk (0.473 GB/s)
contradicts the run times they publish, so it is the disk they describe. `gpu_codes` is reckoned:
ten reads and writes of 16 bits for each number."""


def hosted(
    gpu: Hardware,
    cpu_memory: int,
    cpu_read: float,
    links: tuple[float, float, float],
    cores: int = 16,
) -> Machine:
    """A GPU in a host of that memory, read bandwidth and cores; links: to the GPU, back, both at
    once."""
    to_gpu, to_cpu, both_ways = links
    return Machine(
        name=gpu.name,
        gpu_memory=gpu.memory,
        gpu_taken=TAKEN,
        cpu_memory=cpu_memory,
        disk=1000 * GB,
        to_gpu=to_gpu,
        to_cpu=to_cpu,
        cache_to_cpu=to_cpu,
        cache_rows=ROWS,
        both_ways=both_ways,
        disk_read=1.68 * GB,
        disk_write=1.29 * GB,
        cpu_read=cpu_read,
        cpu_cache=ATTENTION * cpu_read,
        cpu_codes=CODES * (cores - 1),
        gpu_weights=gpu.weight_rate,
        gpu_codes=UNPACKING * gpu.weight_rate,
        code_rows=CODE_ROWS,
        prompt_matrix=gpu.matrix_rate,
        decode_matrix=gpu.matrix_rate,
        prompt_attention=gpu.attention_rate,
        gpu_cache=gpu.cache_rate,
        layer_seconds=gpu.layer_seconds,
    )


def _pcie(rate: float) -> tuple[float, float, float]:
    return rate, rate, 1.69 * rate  # of an H100's link: 92.9 of 55.1


MACHINES = {
    machine.name: machine
    for machine in (
        T4,
        hosted(PRESETS["a10g"], 256 * GB, 200 * GB, _pcie(25 * GB), 32),
        hosted(PRESETS["h100"], 125 * GB, 95 * GB, _pcie(55.1 * GB)),
        hosted(PRESETS["h200"], 134 * GB, 139 * GB, (55.5 * GB, 55.3 * GB, 101 * GB)),
    )
}
"""h100, h200: link and memory measured on hosts of 16 cores, and the disk of the first; a10g: the
quoted rates of NEO's."""


def processor() -> Machine:
    """This machine without a GPU, measured now; its disk is not."""
    cpu = this_cpu()
    found = hosted(cpu, cpu.memory, ENDLESS, (ENDLESS, ENDLESS, ENDLESS))
    return replace(found, gpu_taken=0, disk=0, cache_rows=ENDLESS, alone=True)


def find(name: str) -> Machine:
    """The preset of that name, or this machine without a GPU. Raises `ConfigError`."""
    if name == "cpu":
        return processor()
    if name not in MACHINES:
        raise ConfigError(f"no machine {name!r}; there are {', '.join(MACHINES)} and cpu")
    return MACHINES[name]


def measured(machine: Machine, folder: Path | None) -> Machine:
    """`machine` with the memory of this host and the disk of `folder`, none without: their sizes,
    and what they sustain here. The GPU and its link stay. Raises `ConfigError`."""
    found = replace(machine, disk=0)
    if not machine.alone:
        cpu = this_cpu()
        cpu_read = cpu.weight_rate / CPU_SHARES[0]
        found = replace(
            found,
            name=f"{machine.name} in this host",
            cpu_memory=cpu.memory,
            cpu_read=cpu_read,
            cpu_cache=ATTENTION * cpu_read,
            cpu_codes=CODES * max(1, cores() - 1),
        )
    if folder is None:
        return found
    read, write = disk_rates(folder)
    return replace(found, disk=shutil.disk_usage(folder).free, disk_read=read, disk_write=write)


def disk_rates(folder: Path, size: int = 2**27) -> tuple[float, float]:
    """Bytes/s of reading `size` bytes several times, past the page cache and as weights are read,
    and of writing them. Raises `ConfigError` for a folder that cannot be written."""
    path = folder / f".weir-disk-{os.getpid()}"
    block = os.urandom(BLOCK)
    try:
        began = time.perf_counter()
        with open(path, "wb", buffering=0) as file:
            for _ in range(size // BLOCK):
                file.write(block)
            os.fsync(file.fileno())
        written = time.perf_counter()
        with _past_cache(path) as file, ThreadPoolExecutor(READERS) as pool:
            began_reading = time.perf_counter()
            list(pool.map(partial(_read, file.fileno(), size), range(READERS)))
            done = time.perf_counter()
    except OSError as error:
        raise ConfigError(f"{folder}: cannot be measured: {error.strerror}") from None
    finally:
        path.unlink(missing_ok=True)
    return PASSES * size / (done - began_reading), size / (written - began)


def _read(file: int, size: int, reader: int) -> None:
    """The blocks of one of the readers."""
    block = mmap.mmap(-1, BLOCK)  # on a page boundary, as reading past the cache asks
    for _ in range(PASSES):
        for offset in range(reader * BLOCK, size, READERS * BLOCK):
            os.preadv(file, [block], offset)


def _past_cache(path: Path) -> io.FileIO:
    """A file to read from its device, where the file system allows that."""
    try:
        return io.FileIO(os.open(path, os.O_RDONLY | getattr(os, "O_DIRECT", 0)))
    except OSError:
        return io.FileIO(path)
