"""Makes an `Engine` from a `Config`: the one file that knows every class."""

import contextlib
import gc
import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from weir import __version__, connect, hub, offload, policies
from weir.config import Config
from weir.core import Tier
from weir.cost import profile
from weir.cost.fetch import Fetch
from weir.cost.hardware import this_gpu
from weir.cost.lanes import Host, Lanes
from weir.cost.roofline import Roofline
from weir.cost.target import Cost, Target
from weir.device import GIB, Phases, Platform, executor_over, homed, open_disk, platform_of
from weir.engine import Engine
from weir.errors import ConfigError
from weir.executor.local import Direct
from weir.folders import cache_folder
from weir.grammar.library import Library
from weir.kv import snapshot
from weir.models.base import Model
from weir.models.load import load
from weir.models.weights import LayerStore
from weir.ops import dispatch, native
from weir.ops.coded import BYTES
from weir.runtime import rates
from weir.runtime.disk import Disk
from weir.runtime.store import Store
from weir.sched.scheduler import Scheduler

log = logging.getLogger(__name__)


def engine(config: Config) -> Engine:
    """The engine that `config` describes, with its weights loaded and its KV memory allocated.

    Raises ConfigError, with the numbers and the flag to change, for what cannot be had here."""
    phases = Phases()
    policies.check(config)
    platform = platform_of(config)
    try:
        return _engine(config, platform, phases)
    except torch.OutOfMemoryError as error:
        raise ConfigError(_too_small(config.gpu_memory, platform, phases)) from error


def _too_small(cap: int, platform: Platform, phases: Phases) -> str:
    """The error message for when the GPU's memory, or the `cap` on it (0: none), ran out."""
    free, total = torch.cuda.mem_get_info(platform.device)
    taken = torch.cuda.memory_reserved(platform.device)
    said, more = f"{free / GIB:.1f} of {total / GIB:.1f} GiB are free", "free some"
    if cap and cap - taken < free:
        said = f"--gpu-memory allows {cap / GIB:.1f} GiB, of which {taken / GIB:.1f} were taken"
        more = "allow more"
    return (
        f"the GPU's memory is not enough: {said} after {', '.join(phases.seconds)}: {more}, or "
        "choose a smaller model, --max-num-batched-tokens or --kv-cache-memory"
    )


def _engine(config: Config, platform: Platform, phases: Phases) -> Engine:
    torch.manual_seed(config.seed)
    phases.done("device")
    source = hub.resolve(config.model, config.revision, config.download_dir)
    phases.done("files")
    placed = offload.arrange(config, source.path, platform.device, platform.dtype)
    config = placed.config
    platform = homed(platform, config, placed.hosted)
    if placed.hosted or (config.cpu_attention != "off" and platform.device.type == "cuda"):
        native.set_threads(max(1, platform.threads - 1))  # one is left to launch GPU work
    phases.done("placement")
    model = _model(config, platform, source.path, placed.layer_store)
    phases.done("weights")
    disk = open_disk(config, platform, model, source.path) if config.disk_cache else None
    executor = executor_over(config, platform, model, disk, phases)
    info = _info(config, platform, model, executor, placed.about, phases)
    capacity, defaults = executor.capacity, policies.DEFAULTS[platform.device.type]
    pace = policies.pace(
        config, defaults, capacity.tokens, lambda: _cost(config, platform, model, executor, info)
    )
    told = policies.told(config)
    store = executor.runner.store
    slow = {} if disk is None else {int(Tier.DISK): disk}
    fetch = Fetch(store.record / store.page, store.loaded, slow)
    scheduler = policies.scheduler(
        config,
        capacity,
        pace,
        chains=executor.chains,
        scorer=told,
        below=fetch,
        lanes=_lanes(config, platform, model, store),
        hosted=placed.hosted,
    )
    phases.done("profile")
    if disk is not None:
        info["disk_restored_tokens"] = _restore(scheduler, disk)
        phases.done("disk cache")
    gc.collect()
    gc.freeze()  # the collector need not traverse what lives as long as the engine
    return Engine(
        scheduler,
        executor,
        info=info,
        target=pace if isinstance(pace, Target) else None,
        library=_library(config, model.spec.vocab),
        told=told,
        fetch=fetch,
        keeper=disk,
    )


def _model(
    config: Config, platform: Platform, path: Path, layer_store: Callable[[int], LayerStore] | None
) -> Model:
    """The weights at `path`, on the device or, as they are made, in a layer store."""
    as_kept = platform.native and config.dtype == "auto"  # quantised weights stay so
    return load(
        path,
        dtype=None if as_kept else platform.dtype,
        device=platform.device,
        format=config.load_format,
        quantization=config.quantization,
        context=config.max_model_len,
        seed=config.seed,
        threads=platform.threads,
        layer_store=layer_store,
    )


def _restore(scheduler: Scheduler, disk: Disk) -> int:
    """Restore the KV that an earlier engine left on disk; returns its tokens."""
    if not disk.kept:
        return 0
    try:
        return snapshot.restore(scheduler.cache, disk.kept)
    except ValueError as error:
        log.warning("starting with an empty KV cache on disk: %s", error)
        return 0


def _library(config: Config, vocab: int) -> Library | None:
    """Grammars for this model; reads its tokenizer on a thread, which nobody waits for."""
    if config.grammar_backend == "none":
        return None
    return Library(partial(connect.tokens, config), vocab, config.grammar_timeout)


def _cost(
    config: Config, platform: Platform, model: Model, executor: Direct, info: dict[str, Any]
) -> Cost:
    """A cost model of steps here. With a latency target a table, from the user's cache or measured
    now and stored there; without one a roofline from the GPU's rates."""
    if not (config.target_tbt or config.target_ttft):
        return _roofline(platform, model)
    key = profile.identity(info, config.model, __version__)
    file = profile.path(cache_folder("profiles"), key)
    with contextlib.suppress(ConfigError):  # none yet, or damaged
        return profile.load(file, key)
    table, _ = profile.profile(executor, key, repeats=1)
    with contextlib.suppress(ConfigError):  # a cache that cannot be written is measured again
        profile.save(table, file)
    return table


def _roofline(platform: Platform, model: Model) -> Roofline:
    memory = torch.cuda.get_device_properties(platform.device).total_memory
    device = this_gpu(memory, *rates.rates(platform.device, platform.dtype))
    number = platform.dtype if platform.kv_dtype in BYTES else platform.kv_dtype
    return Roofline(model.spec, device, platform.dtype.itemsize, number.itemsize)


def _lanes(config: Config, platform: Platform, model: Model, store: Store) -> Lanes | None:
    """Costs of attention in main memory beside the GPU; None if the engine never uses it."""
    if config.cpu_attention == "off" or Tier.GPU not in store.kv:
        return None
    spec = model.spec
    rate = rates.attention(store.kv[Tier.CPU][0], spec.attention[0], platform.dtype)
    host = Host(rate, store.record / store.page, spec.layers)
    return Lanes(_roofline(platform, model), host, Tier.CPU)


def _info(
    config: Config,
    platform: Platform,
    model: Model,
    executor: Direct,
    offloaded: str,
    phases: Phases,
) -> dict[str, Any]:
    """A description of the engine and its machine, for people to read."""
    device, capacity = platform.device, executor.capacity
    on_gpu = device.type == "cuda"
    info = {
        "device": torch.cuda.get_device_name(device) if on_gpu else "cpu",
        "dtype": model.stored,
        "kv_dtype": str(platform.kv_dtype).removeprefix("torch."),
        "kernels": _gpu_kernels() if on_gpu else native.status(),
        "graphs": len(executor.runner.graphs.recorded),
        "threads": platform.threads,
        "architecture": model.spec.architecture,
        "vocab": model.spec.vocab,
        "kv_tokens": capacity.pages[platform.tier] * capacity.page,
        "start_seconds": phases.seconds,
    }
    if offloaded:
        info["offload"] = offloaded
    if config.cpu_cache:
        info["cpu_cache_tokens"] = capacity.pages[Tier.CPU] * capacity.page
        info["cpu_cache_dtype"] = str(platform.cold).removeprefix("torch.")
    if Tier.DISK in capacity.pages:
        info["disk_tokens"] = capacity.pages[Tier.DISK] * capacity.page
    return info


def _gpu_kernels() -> str:
    found = dispatch.triton is not None
    return "Triton kernels" if found else "PyTorch, slowly: Triton is not installed"
