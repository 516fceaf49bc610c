"""Applies `--offload`: where weights and KV cache lie, by a given plan or the best one found here.

Batch sizes and KV of the plan become settings, except those that the user chose.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
from msgspec.structs import replace

from weir.config import Config
from weir.cost.hardware import this_gpu
from weir.cost.machine import Machine, hosted, measured, processor
from weir.cost.offload import BYTES, MARGIN, Job, Offload, Prediction, Shares, predict
from weir.cost.search import GPU, Planned, Report, runnable, search
from weir.cost.work import cache_bytes, weights
from weir.errors import ConfigError
from weir.linux import free_memory
from weir.models.load import load
from weir.models.shape import read_spec
from weir.ops import native
from weir.runtime import rates
from weir.runtime.streamed import Streamed
from weir.spec import Spec
from weir.trial import timed

log = logging.getLogger(__name__)

ENDLESS = 10**6
"""Requests of a job that has no end: so many that the first and the last do not count."""
HARMFUL = 1.25
"""A warning is logged if the best plan is predicted to be this many times as fast as the given."""
PAGE = 16
"""Tokens of KV that a request may reserve beyond its own, since pages are taken whole."""
EAGER = 200e-6
"""Seconds to launch a layer's kernels one by one, without a CUDA graph."""
BITS = {"fp8": 8, "int4": 4}
"""Bits of a weight, by `--quantization`."""
CODES = {8: "int8", 4: "int4"}
"""`--kv-cache-dtype`, by bits of a number."""
ROOMY = 0.8
"""The share of a memory that weights may take without being offloaded."""


@dataclass(frozen=True, slots=True)
class Placed:
    """The outcome of `--offload`."""

    config: Config  # with the settings of the plan
    layer_store: Callable[[int], Streamed] | None = None  # None: all layers are on the device
    hosted: bool = False  # a GPU computes, and all KV is in main memory
    about: str = ""  # the placement, in a line for people


def arrange(config: Config, path: Path, device: Any, dtype: Any) -> Placed:
    """Place the model at `path`, computed on a PyTorch `device` with weights of `dtype`.

    Raises `ConfigError` for a plan that is unreadable or does not fit, and warns of a slow one."""
    if config.offload == "none":
        return Placed(config)
    given = None if config.offload == "auto" else _read(Path(config.offload))
    spec = read_spec(path)
    bits = weight_bits(config, path, spec, dtype)
    if device.type == "cpu" and given is None:
        return _spilled(config, weights(spec) * bits / 8, device)
    room = rates.room(device, config.gpu_memory_utilization) if device.type != "cpu" else 0
    room = min(room, config.gpu_memory or room)
    if given is None and weights(spec) * bits / 8 <= ROOMY * room:
        return Placed(config)
    machine = this_machine(config, path, room, device, dtype)
    job = given.job if given is not None else _job(config.max_model_len or spec.context, spec)
    kinds = {"weight_bits": bits, "cache_bits": cache_bits(config)}
    bases = runnable(machine, native.library() is not None, **kinds)
    best = partial(search, spec, job, machine, bases)
    found = best() if given is None else _checked(config, given, spec, machine, bits, best)
    placed = found.offload
    if not (machine.alone or placed.cache[1]):  # a GPU keeps no codes
        placed = replace(placed, cache_bits=16)
    log.info("offloading: %s", describe(found, machine))
    layer_store = _layer_store(config, placed.weights, device) if placed.weights[0] < 1 else None
    apart = placed.cache[0] * placed.block < 1  # the GPU has no room for one request's KV
    settings = _settings(config, placed, apart, job, _tokens(spec, placed, dtype.itemsize))
    return Placed(settings, layer_store, apart, describe(found, machine))


def _spilled(config: Config, held: float, device: Any) -> Placed:
    """Weights of `held` bytes in main memory, as far as it has room, and the rest on disk."""
    room = config.cpu_memory or ROOMY * (1 - config.cpu_memory_fraction) * free_memory()
    disk = max(0.0, 1 - room / held)
    if not disk:
        return Placed(config)
    about = f"weights {1 - disk:.0%} in main memory, {disk:.0%} on disk"
    return Placed(config, _layer_store(config, (1 - disk, 0.0, disk), device), about=about)


def weight_bits(config: Config, path: Path, spec: Spec, dtype: Any) -> int:
    """Bits that a weight takes, quantised ones without their scales."""
    if config.quantization in BITS:
        return BITS[config.quantization]
    if config.load_format == "dummy" or config.quantization == "none" or config.dtype != "auto":
        return 8 * int(dtype.itemsize)
    files = [path] if path.is_file() else path.glob("*.safetensors")
    stored = 8 * sum(file.stat().st_size for file in files) / weights(spec)
    return next((bits for bits in (4, 8) if stored < 1.5 * bits), 8 * int(dtype.itemsize))


def cache_bits(config: Config) -> int:
    """Bits that a number of KV in main memory takes."""
    return next((bits for bits, kind in CODES.items() if kind == config.kv_cache_dtype), 16)


def this_machine(config: Config, path: Path, room: int, device: Any, dtype: Any) -> Machine:
    """This machine, with the memory that may be used and rates timed for the model at `path`, in
    about a second. room: bytes of the GPU. Raises `ConfigError` if the folder of `--offload-dir`
    cannot be written."""
    folder = Path(config.offload_dir) if config.offload_dir else None
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    memory = config.cpu_memory or free_memory()
    if device.type == "cpu":
        kept = config.dtype == "auto" and native.library() is not None
        kind = {"format": config.load_format, "quantization": config.quantization}
        first = partial(load, path, dtype=None if kept else dtype, **kind)
        found = measured(processor(), folder)
        found = timed(found, read_spec(path), lambda n: first(layers=n), device, dtype)
        return replace(found, gpu_memory=memory, cpu_memory=memory)
    gpu = replace(this_gpu(room, *rates.rates(device, dtype)), layer_seconds=EAGER)
    found = measured(hosted(gpu, 0, 1.0, rates.links(device)), folder)
    return replace(found, cpu_memory=memory)


def _layer_store(config: Config, shares: Shares, device: Any) -> Callable[[int], Streamed]:
    folder = Path(config.offload_dir) if config.offload_dir else None
    room = config.cpu_memory or None
    return lambda count: Streamed(count, shares, device, folder, room)


def _tokens(spec: Spec, placed: Offload, size: int) -> tuple[float, float]:
    """Bytes of a token's KV on the GPU, with `size` bytes per number, and in main memory."""
    there = size if placed.cache_bits == 16 else BYTES[placed.cache_bits]
    return cache_bytes(spec, size), cache_bytes(spec, there)


def _settings(
    config: Config, placed: Offload, apart: bool, job: Job, token: tuple[float, float]
) -> Config:
    """`config` with the settings of a placement that the user left open: steps as large as the
    plan's, so that computing hides copies, with the decodes of a block beside prompts; lanes as
    large as its batches; and KV memory for its block. apart: all KV is in main memory. token: bytes
    of a token's KV on the GPU and in main memory. Raises `ConfigError` for settings that contradict
    the plan."""
    prompts, (here, away, _) = placed.batch * job.prompt, placed.cache
    together = prompts * placed.lanes
    beside = placed.block if placed.lanes < placed.batches else 0
    tokens = config.max_num_batched_tokens or max(together + beside, placed.block)
    one, cold = (size * (job.prompt + job.output + PAGE) for size in token)
    wide = "auto" if cache_bits(config) < 16 else config.kv_cache_dtype
    more: dict[str, Any] = {"kv_cache_dtype": CODES.get(placed.cache_bits, wide)}
    room = 0.0
    if away and config.cpu_cache:
        raise ConfigError("--offload: KV is in main memory already: leave out --cpu-cache")
    if apart:
        room = cold * placed.block
    elif away:
        if not config.memory_policy.startswith("on-demand"):
            raise ConfigError("--offload: KV in two memories needs --memory-policy on-demand")
        room = one * here * placed.block
        more |= {"cpu_cache": int(cold * (away * placed.block + 1)), "cpu_attention": "all"}
        if config.memory_policy == "on-demand":  # no request starts that might not finish
            more["memory_policy"] = f"on-demand(ahead={job.output})"
    return replace(
        config,
        kv_cache_memory=config.kv_cache_memory or int(room),
        max_num_seqs=min(config.max_num_seqs or placed.block, tokens),
        max_num_batched_tokens=tokens,
        max_lane_tokens=config.max_lane_tokens or max(prompts, placed.block),
        max_prefill_beside_decode=config.max_prefill_beside_decode or min(tokens, together),
        enforce_eager=True,  # CUDA graphs need layers at fixed addresses
        **more,
    )


def _job(context: int, spec: Spec) -> Job:
    """The requests to plan for where no plan says, in `context` tokens."""
    context = min(context, spec.context)
    output = min(Job().output, context // 2)
    return Job(prompt=min(Job().prompt, context - output), output=output, requests=ENDLESS)


def _read(path: Path) -> Report:
    try:
        return msgspec.json.decode(path.read_bytes(), type=Report)
    except OSError as error:
        raise ConfigError(f"--offload {path}: cannot be read: {error.strerror}") from None
    except msgspec.DecodeError as error:
        raise ConfigError(
            f"--offload {path}: expected what `weir plan --json` prints: {error}"
        ) from None


def _checked(
    config: Config,
    given: Report,
    spec: Spec,
    machine: Machine,
    bits: int,
    find_best: Callable[[], Planned],
) -> Planned:
    """The given plan with its prediction for this machine, after comparing it with the best one if
    a solver is installed. Raises `ConfigError` if it cannot run here."""
    placed = replace(given.planned.offload, weight_bits=bits, overlap="copies", decode_lanes=1)
    if config.kv_cache_dtype != "auto":
        placed = replace(placed, cache_bits=cache_bits(config))
    if machine.alone:  # main memory is where it computes
        here, there, disk = placed.weights
        placed = replace(placed, weights=(here + there, 0.0, disk), cache=GPU)
    away = placed.cache[1] > 0
    if placed.cache[2] or placed.cache_bits not in BYTES or placed.hidden != GPU:
        raise ConfigError(
            "--offload: the engine keeps KV on the GPU and in main memory, there in 16, 8 or 4 "
            "bits, and activations on the GPU: plan again"
        )
    if away and not (placed.cpu_attention and native.library() is not None):
        raise ConfigError(f"--offload: attention on the CPU needs its kernels: {native.status()}")
    if placed.weights[2] and not machine.disk:
        raise ConfigError("--offload: the plan has weights on disk: add --offload-dir FOLDER")
    said = predict(spec, given.job, machine, placed)
    if not said.fits:
        raise ConfigError(f"--offload: the plan does not fit: it needs {_excess(said, machine)}")
    try:
        best = find_best()
    except ConfigError:
        return Planned(name="given", offload=placed, predicted=said)
    if best.predicted.throughput > HARMFUL * said.throughput:
        log.warning(
            "this plan is predicted to give %.2f tokens/s, the best one %.2f (%s)",
            *(said.throughput, best.predicted.throughput, describe(best, machine)),
        )
    return Planned(name="given", offload=placed, predicted=said)


def _excess(said: Prediction, machine: Machine) -> str:
    """The memories of which a plan needs more than there is."""
    sizes = machine.gpu_memory, machine.cpu_memory, machine.disk
    rooms = dict(zip(said.memory, sizes, strict=True))
    return " and ".join(
        f"{said.memory[name] / 1e9:.1f} GB of {name}, where {MARGIN * room / 1e9:.1f} may be used"
        for name, room in rooms.items()
        if said.memory[name] > MARGIN * room
    )


def describe(found: Planned, machine: Machine) -> str:
    """A placement and its prediction, in one line."""
    placed, said = found.offload, found.predicted
    places = ("in main memory" if machine.alone else "on the GPU", "in main memory", "on disk")
    shares = [
        f"{what} {share:.0%} {where}"
        for what, parts in (("weights", placed.weights), ("KV", placed.cache))
        for share, where in zip(parts, places, strict=True)
        if share
    ]
    if placed.cache_bits < 16 and (placed.cache[1] or machine.alone):
        shares[-1] += f" in {placed.cache_bits} bits"
    return (
        f"{', '.join(shares)}; {placed.block} requests, {said.throughput:.2f} tokens/s predicted, "
        f"waiting for {said.decode_limit}"
    )
