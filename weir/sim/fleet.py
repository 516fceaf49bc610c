"""Replicas for virtual time: the real scheduler over a device whose steps are only priced."""

from typing import NamedTuple

from weir import policies
from weir.config import Config
from weir.core import Capacity, Plan, Tier
from weir.cost.fetch import Fetch
from weir.cost.hardware import Hardware
from weir.cost.lanes import Lanes
from weir.cost.machine import CODES
from weir.cost.offload import BYTES, QUERY
from weir.cost.target import Cost, Target
from weir.cost.transfer import Transfers, loads
from weir.cost.work import Work, activations, cache_bytes, weights
from weir.engine import Engine
from weir.errors import ConfigError
from weir.executor.sim import Sim, VirtualClock
from weir.sched.scheduler import Scheduler
from weir.sim.replay import Replica
from weir.spec import Spec

GB = 10**9
CORES = 16  # assumed of a GPU's host
NUMBER = {"float32": 4.0, "float16": 2.0, "bfloat16": 2.0, "int8": BYTES[8], "int4": BYTES[4]}


class Number(NamedTuple):
    """Bytes of a number of the KV cache: on the device that computes, and on colder tiers."""

    here: float
    away: float


def number(config: Config, cpu: bool) -> Number:
    """The sizes that the engine would use; a GPU's own KV is never coded. Raises `ConfigError` if
    codes are requested but no tier would have them."""
    wide = 4.0 if config.dtype == "float32" else 2.0
    size = NUMBER.get(config.kv_cache_dtype, wide)
    if cpu or size >= 2:
        return Number(size, size)
    if not config.cpu_cache:
        raise ConfigError(
            f"--kv-cache-dtype {config.kv_cache_dtype} is for main memory, and this GPU would keep"
            " all KV: add --cpu-cache 64GiB, or leave it out"
        )
    return Number(wide, size)


def attended(spec: Spec, size: float, rate: float, cores: int) -> float:
    """The cost of attending to a number of `size` bytes with that many cores, as the bytes that
    memory of `rate` bytes/s reads meanwhile. Codes take time to unpack, but never more than it
    takes to read 16 bits."""
    if size >= 2:
        return size
    unpacking = rate / (CODES * cores) * (1 + QUERY * spec.heads / spec.kv_heads)
    return min(2.0, max(size, 2.0 * unpacking))


def defaults_of(hardware: Hardware) -> policies.Defaults:
    return policies.DEFAULTS["cpu" if hardware.name == "cpu" else "cuda"]


def replica(
    scheduler: Scheduler,
    cost: Cost,
    vocab: int,
    depth: int = 2,
    target: Target | None = None,
    transfers: Transfers | None = None,
    fetch: Fetch | None = None,
    lanes: Lanes | None = None,
) -> Replica:
    """An idle engine at time 0. `lanes`, or else `cost`, gives the time of its plans, `transfers`
    that of their moves. depth: most plans in flight."""
    clock = VirtualClock()

    def seconds(plan: Plan) -> float:
        return cost.seconds(Work.of(plan)) if lanes is None else lanes.plan(plan)

    def token(uid: int, position: int) -> int:
        return (uid * 7919 + position * 104729) % vocab  # answers differ between requests

    executor = Sim(scheduler.capacity, clock, seconds, token, depth=depth, transfers=transfers)
    return Replica(Engine(scheduler, executor, clock, target=target, fetch=fetch), clock)


def capacity(config: Config, spec: Spec, hardware: Hardware, weight_bytes: float = 2.0) -> Capacity:
    """The capacity with the KV cache in the memory that weights and the activations of one step
    leave, according to the configuration. Raises `ConfigError` if that is too small."""
    cpu, defaults = hardware.name == "cpu", defaults_of(hardware)
    context = min(spec.context, config.max_model_len or spec.context)
    tokens = policies.step_tokens(config, defaults.tokens, context)
    page = config.block_size or defaults.page
    usable = config.cpu_memory_fraction if cpu else config.gpu_memory_utilization
    taken = weights(spec) * weight_bytes + 2 * tokens * activations(spec)
    room = config.kv_cache_memory or hardware.memory * usable - taken
    here, away = (cache_bytes(spec, size) * page for size in number(config, cpu))
    pages = int(room / here)
    if pages * page < min(context, 256):
        raise ConfigError(
            f"{hardware.name} has {hardware.memory / GB:.0f} GB and the model takes "
            f"{taken / GB:.1f} of them: nothing is left for the KV cache"
        )
    record = int(away)
    sizes = {int(Tier.CPU if cpu else Tier.GPU): pages}
    if config.cpu_cache and not cpu:
        sizes[int(Tier.CPU)] = max(1, config.cpu_cache // record)
    if config.disk_cache:
        sizes[int(Tier.DISK)] = max(1, config.disk_cache_size // record)
    requests = config.max_num_seqs or defaults.requests
    most = min(context, pages * page)
    return Capacity(page, sizes, tokens, requests, most, loads(record, sizes))
