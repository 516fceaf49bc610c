"""From a `Config` to an `Engine`: the one file that knows every class, the last to see Config."""

from __future__ import annotations

import contextlib
import gc
import os
import time
from dataclasses import dataclass, field
from typing import Any

import torch

from weir import __version__, hub, policies
from weir.config import Config
from weir.core import Spec, Tier
from weir.cost import profile
from weir.cost.table import Table
from weir.cost.target import Target
from weir.engine import Engine
from weir.errors import ConfigError
from weir.executor.local import Local
from weir.models.load import load
from weir.ops import dispatch, native
from weir.runtime.runner import Runner
from weir.runtime.store import Store, page_bytes

GIB = 2**30
DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


@dataclass(slots=True)
class Phases:
    """Seconds of each phase of the start."""

    began: float = field(default_factory=time.perf_counter)
    seconds: dict[str, float] = field(default_factory=dict)

    def done(self, name: str) -> None:
        now = time.perf_counter()
        self.seconds[name] = round(now - self.began, 3)
        self.began = now


def engine(config: Config) -> Engine:
    """The engine that `config` describes, its weights loaded and its KV memory taken.

    Raises ConfigError, with the numbers and the flag to change, for what cannot be had here."""
    phases = Phases()
    policies.check(config)
    torch.manual_seed(config.seed)
    device = _device(config.device)
    threads = config.threads or len(os.sched_getaffinity(0))
    if device.type == "cpu":
        native.set_threads(threads)
        kernels = native.library() is not None
    else:
        kernels = False
    dtype = _dtype(config.dtype, device, kernels)
    as_kept = kernels and config.dtype == "auto"  # quantised weights stay so
    phases.done("kernels")
    source = hub.resolve(config.model, config.revision, config.download_dir)
    phases.done("files")
    model = load(
        source.path,
        dtype=None if as_kept else dtype,
        device=device,
        format=config.load_format,
        context=config.max_model_len,
        seed=config.seed,
        threads=threads,
    )
    phases.done("weights")
    defaults = policies.DEFAULTS[device.type]
    page = config.block_size or defaults.page
    tier = Tier.GPU if device.type == "cuda" else Tier.CPU
    kv_dtype = dtype if config.kv_cache_dtype == "auto" else DTYPES[config.kv_cache_dtype]
    pages = _pages(config, model.spec, page, kv_dtype, device)
    context = min(model.spec.context, pages * page)
    store = Store(model.spec.attention, page, {tier: pages}, {tier: device}, kv_dtype)
    executor = Local(
        Runner(model, store, context, device),
        tokens=policies.step_tokens(config, defaults.tokens, context),
        requests=config.max_num_seqs or defaults.requests,
        context=context,
        depth=2 if config.overlap else 1,
        threads=1 if kernels else threads,
    )
    phases.done("memory")
    info = {
        "device": _name(device),
        "dtype": "codes" if model.head.dtype == torch.uint8 else str(dtype).removeprefix("torch."),
        "kv_dtype": str(kv_dtype).removeprefix("torch."),
        "kernels": native.status() if device.type == "cpu" else _gpu_kernels(),
        "threads": threads,
        "architecture": model.spec.architecture,
        "vocab": model.spec.vocab,
        "kv_tokens": pages * page,
        "start_seconds": phases.seconds,
    }
    capacity = executor.capacity
    pace = policies.pace(config, defaults, capacity.tokens, lambda: _cost(config, executor, info))
    scheduler = policies.scheduler(config, capacity, pace, chains=executor.chains)
    phases.done("profile")
    gc.collect()
    gc.freeze()  # what lives as long as the engine is not walked again while it serves
    target = pace if isinstance(pace, Target) else None
    return Engine(scheduler, executor, info=info, target=target)


def _cost(config: Config, executor: Local, info: dict[str, Any]) -> Table:
    """How long steps take here: from the user's cache, else measured now and kept there."""
    key = profile.identity(info, config.model, __version__)
    file = profile.path(hub.cache_folder().parent / "profiles", key)
    with contextlib.suppress(ConfigError):  # none yet, or damaged
        return profile.load(file, key)
    table, _ = profile.profile(executor, key, repeats=1)
    with contextlib.suppress(ConfigError):  # a cache that cannot be written is measured again
        profile.save(table, file)
    return table


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("no CUDA device was found: use --device cpu, or see `weir doctor`")
    return torch.device(name)


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def _gpu_kernels() -> str:
    found = dispatch.triton is not None
    return "Triton kernels" if found else "PyTorch, slowly: Triton is not installed"


def _dtype(name: str, device: torch.device, kernels: bool) -> torch.dtype:
    if name == "auto":
        return torch.bfloat16 if kernels or device.type == "cuda" else torch.float32
    return DTYPES[name]


def _pages(config: Config, spec: Spec, page: int, dtype: torch.dtype, device: torch.device) -> int:
    """Pages of the KV cache: what the configuration says, or a share of what is free."""
    one = page_bytes(spec.attention, page, dtype)
    room = config.kv_cache_memory or _free(config, device)
    pages = room // one
    if pages * page < min(spec.context, 256):
        raise ConfigError(
            f"the KV cache would hold {pages * page} tokens in {room / GIB:.2f} GiB "
            f"({one / page / 1024:.0f} KiB a token): give it more with --kv-cache-memory"
            + (" or --gpu-memory-utilization" if device.type == "cuda" else "")
        )
    return int(pages)


def _free(config: Config, device: torch.device) -> int:
    if device.type == "cuda":
        torch.cuda.empty_cache()
        free, total = torch.cuda.mem_get_info(device)
        return max(0, int(free - (1 - config.gpu_memory_utilization) * total))
    with open("/proc/meminfo") as lines:
        sizes = dict(line.split(":") for line in lines)
    return int(int(sizes["MemAvailable"].split()[0]) * 1024 * config.cpu_memory_fraction)
