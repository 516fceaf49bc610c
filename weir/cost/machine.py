"""A computer with three memories: sizes and rates of its GPU, main memory, disk and the links
between them. Only used for offloading. Knows no model.
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
"""The share of a CPU's read bandwidth that its decode attention reaches."""
CODES = 27e9
"""Bytes/s of 16-bit KV that a core unpacks from codes (measured with 16 cores of a Xeon at once).
One core is reserved for the GPU."""
UNPACKING, CODE_ROWS = 0.5, 256
"""The rate at which a GPU unpacks 4-bit weights to 16 bits, as a share of its rate of reading
weights (prompts of OPT-175B in lanes of 1,024 tokens, H200), and the rows up to which it multiplies
codes without unpacking (ops/triton/codes.py)."""
VECTORS = 40
"""Hidden states' worth of bytes that norms, activations, sums and the coding of KV read and write
in a layer for a token of a prompt (OPT-30B's kernels on an H200: 0.165 us at 3.65 TB/s)."""
WRITTEN = 0.8
"""The share of a link's rate at which a kernel writes KV to the host during copies the other way
(41 to 43 of 55 GB/s)."""
READERS, BLOCK, PASSES = 4, 4 << 20, 4
"""To time a disk: threads, bytes of one read, and times that all is read."""

TAKEN = 1 << 28
"""Bytes of a GPU's memory used for anything but weights, KV and activations."""

Curve = tuple[tuple[int, float], ...]
"""Rows → seconds that they take, as pairs."""


def at(curve: Curve, rows: float) -> float:
    """Seconds of `rows` rows: linear between timed points, proportional beyond the last."""
    counts, seconds = zip(*curve, strict=True)
    return float(np.interp(rows, counts, seconds) * max(1.0, rows / counts[-1]))


class Machine(Struct, frozen=True, kw_only=True):
    """Sizes are bytes. Rates are bytes/s or FLOP/s under load; those of KV count bytes as stored,
    unless they say otherwise."""

    name: str
    gpu_memory: int
    gpu_taken: int = 0  # part of it used by libraries and for sampling
    cpu_memory: int
    disk: int
    to_gpu: float  # CPU memory to GPU, pinned
    to_cpu: float  # GPU to CPU memory
    cache_to_cpu: float  # the same for the KV of a prompt
    both_ways: float = ENDLESS  # both directions together
    disk_read: float
    disk_write: float
    cpu_read: float = ENDLESS  # CPU memory, for copies and attention together
    cpu_cache: float  # KV read by decode attention on the CPU
    cpu_codes: float = ENDLESS  # KV that the CPU unpacks for attention, in bytes of 16-bit numbers
    gpu_weights: float  # GPU memory, reading weights
    gpu_codes: float = ENDLESS  # 4-bit codes that the GPU unpacks, in bytes of 16-bit numbers
    code_rows: int = 0  # rows up to which it multiplies codes as they are
    prompt_matrix: float  # FLOP/s of linears over prompts
    decode_matrix: float  # FLOP/s of linears over decodes, once weights are read fast enough
    prompt_attention: float  # FLOP/s
    vectors: float = 0.0  # hidden states that small kernels read or write for a prompt's token
    gpu_cache: float  # KV read by decode attention on the GPU
    layer_seconds: float = 0.0  # fixed cost of one layer's kernels for one batch
    layer: Curve = ()  # timed linears of a layer of one model; used instead of the rates, if given
    rest: Curve = ()  # timed work of that model outside its layers, by rows that sample
    layer_bytes: float = 0.0  # bytes of that model's weights in a layer
    alone: bool = False  # there is no GPU: the GPU's values are those of the CPU and its memory


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
"""FlexGen's machine, with constants that its authors fitted to runs of their engine. Their
attention computes whole squares of query-key pairs, so its rate is halved here. Their fitted disk
rate (0.473 GB/s) contradicts their published run times, so the disk they describe is used instead.
`gpu_codes` is calculated: ten reads and writes of 16 bits per number."""


def hosted(
    gpu: Hardware,
    cpu_memory: int,
    cpu_read: float,
    links: tuple[float, float, float],
    cores: int = 16,
) -> Machine:
    """A GPU in a host with this memory, read bandwidth and cores. links: rates to the GPU, back,
    and both at once."""
    to_gpu, to_cpu, both_ways = links
    return Machine(
        name=gpu.name,
        gpu_memory=gpu.memory,
        gpu_taken=TAKEN,
        cpu_memory=cpu_memory,
        disk=1000 * GB,
        to_gpu=to_gpu,
        to_cpu=to_cpu,
        cache_to_cpu=WRITTEN * to_cpu,
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
        vectors=VECTORS,
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
"""h100, h200: link and memory measured (hosts of 16 cores), disk on the h100's. a10g: NEO's."""


def processor() -> Machine:
    """This machine without a GPU and disk, measured now."""
    cpu = this_cpu()
    found = hosted(cpu, cpu.memory, ENDLESS, (ENDLESS, ENDLESS, ENDLESS))
    return replace(found, gpu_taken=0, disk=0, vectors=0.0, alone=True)


def find(name: str) -> Machine:
    """The preset of that name, or this machine without a GPU. Raises `ConfigError`."""
    if name == "cpu":
        return processor()
    if name not in MACHINES:
        raise ConfigError(f"no machine {name!r}; there are {', '.join(MACHINES)} and cpu")
    return MACHINES[name]


def measured(machine: Machine, folder: Path | None) -> Machine:
    """`machine` with the sizes and measured rates of this host's memory and of the disk of `folder`
    (None: no disk). The GPU and its link stay. Raises `ConfigError`."""
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
    """Bytes/s of reading `size` bytes several times, in the way weights are read (bypassing the
    page cache), and of writing them. Raises `ConfigError` if the folder cannot be written."""
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
    """Read the blocks of one of the readers."""
    block = mmap.mmap(-1, BLOCK)  # aligned to a page, as O_DIRECT demands
    for _ in range(PASSES):
        for offset in range(reader * BLOCK, size, READERS * BLOCK):
            os.preadv(file, [block], offset)


def _past_cache(path: Path) -> io.FileIO:
    """Open a file for reading, bypassing the page cache if the file system allows."""
    try:
        return io.FileIO(os.open(path, os.O_RDONLY | getattr(os, "O_DIRECT", 0)))
    except OSError:
        return io.FileIO(path)
