"""What an engine runs on: the device, its KV memory, and an executor over both.

Sizes come from `Config` and from the free memory.
"""

import logging
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from weir import __version__, policies
from weir.config import Config
from weir.core import Tier
from weir.cost.transfer import slot_bytes
from weir.errors import ConfigError
from weir.executor.local import Direct, Local
from weir.linux import cores, free_memory
from weir.models.base import Model
from weir.ops import dispatch, native
from weir.ops.coded import BYTES, GROUP
from weir.ops.pages import coding_bytes
from weir.ops.prefix import shares
from weir.runtime.codec import Codec
from weir.runtime.disk import Disk
from weir.runtime.graphs import Graphs, decode_sizes, mixed_shapes, shared_sizes
from weir.runtime.index import identity
from weir.runtime.relay import Relay
from weir.runtime.runner import Runner
from weir.runtime.store import Store, page_bytes
from weir.runtime.warmup import pages_needed, rehearse, warm_up_away
from weir.spec import Spec

log = logging.getLogger(__name__)

GIB = 2**30
SPARED = 0.98
"""Share of --gpu-memory taken at the start; the rest allows for fragmentation in later steps."""
RECORDED = 16
"""Most decodes per step for which a CPU records a tape, since calls would take much of the time."""
LANES = 24
"""Most lanes per step, so that attention on the host has a seat for each."""
BORROWED = 3
"""Most layers at once whose pages in main memory, which prompts continue, are copied to the GPU."""
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
CODED = {"int8": torch.int8, "int4": torch.int4}
"""Types of KV that are groups of numbers (ops/coded.py)."""


@dataclass(slots=True)
class Phases:
    """Seconds of each start-up phase."""

    began: float = field(default_factory=time.perf_counter)
    seconds: dict[str, float] = field(default_factory=dict)

    def done(self, name: str) -> None:
        now = time.perf_counter()
        self.seconds[name] = round(now - self.began, 3)
        self.began = now


@dataclass(frozen=True, slots=True)
class Platform:
    """The device, its data types, and the tier of new KV (`homed`), which may be main memory on a
    GPU too."""

    device: torch.device
    tier: Tier
    threads: int
    native: bool  # whether the C++ kernels for CPUs run
    dtype: torch.dtype
    kv_dtype: torch.dtype
    cold: torch.dtype  # of KV in main memory and on disk below a GPU's

    @property
    def hosted(self) -> bool:
        """Whether a GPU's new KV goes to main memory."""
        return self.tier == Tier.CPU and self.device.type != "cpu"


def platform_of(config: Config) -> Platform:
    """The device configured or found. Raises `ConfigError` if there is none."""
    name = config.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("no CUDA device was found: use --device cpu, or see `weir doctor`")
    if name == "cpu" and config.gpu_memory:
        raise ConfigError("--gpu-memory is for a GPU; on a CPU there is --cpu-memory")
    threads = config.threads or cores()
    if name == "cpu":
        native.set_threads(threads)
    if name == "cuda" and config.gpu_memory:
        total = torch.cuda.get_device_properties(name).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, config.gpu_memory / total))
    kernels = name == "cpu" and native.library() is not None
    best = torch.bfloat16 if kernels or name == "cuda" else torch.float32
    dtype = DTYPES.get(config.dtype, best)
    tier = Tier.GPU if name == "cuda" else Tier.CPU
    return Platform(torch.device(name), tier, threads, kernels, dtype, dtype, dtype)


def homed(platform: Platform, config: Config, hosted: bool) -> Platform:
    """The platform with its KV types, and the tier of new KV: main memory if `hosted`. A GPU's own
    pages are never coded. Raises `ConfigError` if a setting would code nothing or cache nothing."""
    if platform.device.type == "cpu" and config.cpu_cache:
        raise ConfigError("--cpu-cache is for a GPU; on a CPU there is --kv-cache-memory")
    tier = Tier.CPU if hosted else platform.tier
    kind = (DTYPES | CODED).get(config.kv_cache_dtype, platform.dtype)
    if tier == Tier.CPU or kind not in BYTES:
        return replace(platform, tier=tier, kv_dtype=kind, cold=kind)
    if not config.cpu_cache:
        raise ConfigError(
            f"--kv-cache-dtype {config.kv_cache_dtype} is for main memory, and this GPU would keep"
            " all KV: add --cpu-cache 64GiB, or leave it out"
        )
    return replace(platform, cold=kind)


def open_disk(config: Config, platform: Platform, model: Model, weights: Path) -> Disk:
    """The tier of KV pages on disk. Pages of an earlier engine are kept only if it had the same
    model, types and version."""
    spec = model.spec
    page = _page(config, platform)
    record = _page_bytes(spec, page, platform.cold)
    kind = config.cold_kv_dtype
    if kind != "auto" and platform.cold in BYTES:
        raise ConfigError("KV of --kv-cache-dtype goes to disk as it is: leave out --cold-kv-dtype")
    codec = None if kind == "auto" else Codec(CODED[kind], record, platform.cold)
    pages = config.disk_cache_size // (record if codec is None else codec.size)
    if not pages:
        raise ConfigError(
            f"--disk-cache-size {config.disk_cache_size} is less than one page of {record} bytes"
        )
    same = identity(
        weights,
        *(__version__, spec, page, config.load_format, config.seed, model.stored),
        *(platform.device.type, platform.native, platform.dtype, platform.kv_dtype),
        *(platform.cold, kind),
    )
    return Disk(Path(config.disk_cache), same, pages, record, codec)


def executor_over(
    config: Config, platform: Platform, model: Model, disk: Disk | None, phases: Phases
) -> Direct:
    """An executor with its KV pages allocated. On a GPU the largest steps run before, to measure
    the memory left for pages, and lanes of fixed shapes are recorded after."""
    device, spec = platform.device, model.spec
    defaults, page = policies.DEFAULTS[device.type], _page(config, platform)
    requests = config.max_num_seqs or defaults.requests
    tokens = policies.step_tokens(config, defaults.tokens, spec.context)
    lane = max(config.max_lane_tokens or tokens, tokens // LANES)
    graphs = _graphs(config, platform, requests, spec)
    attends = config.cpu_attention != "off"

    def runner(pages: int, context: int, below: int = 0) -> Runner:
        store = _store(platform, spec, page, pages, below, disk)
        relay = _relay(store, device) if platform.hosted or (below and attends) else None
        return Runner(model, store, context, device, requests, graphs, relay)

    below = _cpu_pages(config, spec, page, platform)
    if device.type == "cuda":
        torch.cuda.empty_cache()
        probe = runner(pages_needed(tokens, requests, page), spec.context)
        reserve = rehearse(probe, tokens, requests, lane)
        reserve += _beside(config, platform, probe, below, min(tokens, lane))
        room = _gpu_room(config, device, reserve)
        probe.close()
        del probe
        phases.done("warm-up")
    else:
        room = int(free_memory() * config.cpu_memory_fraction)
    attended = below if attends else 0
    pages = _pages(config.kv_cache_memory or room, spec, page, platform, attended)
    context = min(spec.context, max(pages, attended) * page)
    made = runner(pages, context, below)
    phases.done("memory")
    made.record()
    warm_up_away(made)
    limits = {
        "tokens": policies.step_tokens(config, defaults.tokens, context),
        "requests": requests,
        "context": context,
        "depth": 2 if config.overlap else 1,
        "lane": lane,
    }
    if device.type == "cuda":
        torch.cuda.synchronize()
        phases.done("graphs")
        return Direct(made, **limits)
    return Local(made, **limits, threads=1 if platform.native else platform.threads)


def _page(config: Config, platform: Platform) -> int:
    """Tokens per page."""
    return config.block_size or policies.DEFAULTS[platform.device.type].page


def _page_bytes(spec: Spec, page: int, kind: torch.dtype) -> int:
    """Bytes of a KV page of type `kind`. Raises `ConfigError` if head sizes do not suit its
    groups."""
    heads = {layer.head_dim for layer in spec.attention}
    if kind in BYTES and any(size % GROUP for size in heads):
        raise ConfigError(
            f"--kv-cache-dtype {str(kind).removeprefix('torch.')} is of groups of {GROUP} numbers,"
            f" which heads of {max(heads)} are not a multiple of"
        )
    return page_bytes(spec.attention, page, kind)


def _store(
    platform: Platform, spec: Spec, page: int, pages: int, below: int, disk: Disk | None
) -> Store:
    """A store of `pages` in the tier of new KV, `below` pages in main memory, and the disk."""
    host = torch.device("cpu")
    home = host if platform.tier == Tier.CPU else platform.device
    sizes, devices = {platform.tier: pages}, {platform.tier: home}
    if below:
        sizes[Tier.CPU], devices[Tier.CPU] = below, host
    if disk is not None:
        sizes[Tier.DISK] = disk.pages
    kinds = platform.kv_dtype, disk, platform.hosted, platform.cold
    return Store(spec.attention, page, sizes, devices, *kinds)


def _relay(store: Store, device: torch.device) -> Relay:
    """The relay that attends to KV in main memory beside a GPU. Raises `ConfigError` if it cannot
    run."""
    kv = store.kv[Tier.CPU]
    if device.type == "cuda" and not kv[0].is_pinned():
        raise ConfigError("KV in main memory must be pinned, and the driver refused: ulimit -l")
    try:
        return Relay(Tier.CPU, kv, device)
    except RuntimeError as error:
        raise ConfigError(f"the host cannot attend to KV in main memory: {error}") from None


def _graphs(config: Config, platform: Platform, requests: int, spec: Spec) -> Graphs:
    """The lane shapes to record."""
    on_gpu = platform.device.type == "cuda"
    kernels = dispatch.triton is not None if on_gpu else platform.native  # PyTorch looks at lengths
    if config.enforce_eager or not kernels:
        return Graphs()
    if not on_gpu:
        return Graphs(range(1, min(RECORDED, requests) + 1))
    sizes = [size for size in config.cuda_graph_sizes if size <= requests]
    sizes = sizes or decode_sizes(requests)
    shared = shared_sizes(sizes) if shares(spec.attention) else ()
    return Graphs(sizes, mixed_shapes(spec, requests), shared)


def _pages(room: int, spec: Spec, page: int, platform: Platform, away: int) -> int:
    """Pages of the KV cache that fit `room` bytes. away: further pages that attention can read.
    Raises `ConfigError` if both are too few."""
    one = _page_bytes(spec, page, platform.kv_dtype)
    pages = room // one - 1  # one is for padding
    if max(pages, away) * page < min(spec.context, 256):
        flags, used = "--kv-cache-memory", ""
        if platform.device.type == "cuda":
            flags += " or --gpu-memory-utilization"
            used = (
                f" beside {torch.cuda.memory_reserved() / GIB:.2f} GiB of weights and activations"
            )
        raise ConfigError(
            f"the KV cache would hold {max(0, pages * page)} tokens in {room / GIB:.2f} GiB"
            f"{used} ({one / page / 1024:.0f} KiB a token): give it more with {flags}"
        )
    return max(1, int(pages))


def _cpu_pages(config: Config, spec: Spec, page: int, platform: Platform) -> int:
    """Pages of a tier in main memory below the GPU's."""
    if not config.cpu_cache:
        return 0
    pages = config.cpu_cache // _page_bytes(spec, page, platform.cold) - 1
    if pages < 1:
        raise ConfigError(f"--cpu-cache {config.cpu_cache}: that is less than two pages of KV")
    free = free_memory()
    if config.cpu_cache > free:  # not refused: a virtual machine's memory may grow as it is used
        log.warning(
            "--cpu-cache asks for %.1f GiB of main memory, of which %.1f are free: if the "
            "engine is killed, lower it",
            *(config.cpu_cache / GIB, free / GIB),
        )
    return pages


def _beside(config: Config, platform: Platform, probe: Runner, below: int, tokens: int) -> int:
    """GPU bytes needed to move or copy `below` pages of main memory, with lanes of `tokens`."""
    if not below:
        return 0
    store, spec = probe.store, probe.model.spec
    slots = slot_bytes(store.record, below) + coding_bytes(store.paged[0])
    if config.cpu_attention == "off":
        return slots
    layer = _page_bytes(spec, store.page, platform.kv_dtype) // spec.layers
    return slots + BORROWED * layer * (tokens + spec.context) // store.page


def _gpu_room(config: Config, device: torch.device, reserve: int) -> int:
    """Bytes for KV pages: free memory less `reserve` and the share beyond our utilization."""
    free, total = torch.cuda.mem_get_info(device)
    room = free - (1 - config.gpu_memory_utilization) * total
    if config.gpu_memory:
        room = min(room, SPARED * config.gpu_memory - torch.cuda.memory_reserved(device))
    return int(room - reserve)
