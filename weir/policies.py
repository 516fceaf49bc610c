"""From a `Config` to a scheduler: the names of policies and the classes behind them.

Separate from `weir.build` because a simulation makes the same scheduler without PyTorch.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

from weir.config import Config
from weir.core import Capacity, Tier
from weir.cost.lanes import Lanes
from weir.cost.target import Cost, Target
from weir.errors import ConfigError
from weir.kv.cache import Cache
from weir.kv.tiers import Below
from weir.sched import names
from weir.sched.composer import Beside, Pace
from weir.sched.hybrid import PASS, PATIENT, Balance, Hybrid
from weir.sched.placement import OnDemand
from weir.sched.scheduler import Scheduler
from weir.sched.shortest import Scorer, Told


@dataclass(frozen=True, slots=True)
class Defaults:
    """Defaults of a device for what the configuration leaves open (docs/results.md)."""

    page: int
    tokens: int
    requests: int
    beside: Beside | None = None  # prompt tokens in a step that also decodes
    seconds: float = 0.0  # in its place, of such a step, unless a crowd waits


DEFAULTS = {
    "cpu": Defaults(4, 256, 64, beside=Beside(48, 128)),
    "cuda": Defaults(16, 4096, 1024, seconds=0.025),
}


def pace(config: Config, defaults: Defaults, tokens: int, cost: Callable[[], Cost]) -> Pace:
    """How much prompt goes beside decodes, in steps of at most `tokens`. `cost` is called only if
    their time decides. Raises `ConfigError` for a latency target that cannot be met."""
    if config.target_tbt or config.target_ttft:
        first = config.target_ttft or math.inf
        return Target(cost(), config.target_tbt or math.inf, tokens, first=first)
    if config.max_prefill_beside_decode:
        return Beside(config.max_prefill_beside_decode)
    if defaults.beside is not None:
        return defaults.beside
    return Target(cost(), defaults.seconds, tokens, firm=False)


def scheduler(
    config: Config,
    capacity: Capacity,
    pace: Pace,
    *,
    chains: bool = True,
    scorer: Scorer | None = None,
    below: Below | None = None,
    lanes: Lanes | None = None,
    hosted: bool = False,
) -> Scheduler:
    """The scheduler that `config` describes, over what an executor can hold; `lanes` price
    attention in main memory, where, if `hosted`, all KV of a GPU is. Raises `ConfigError` for a
    policy that does not exist."""
    sizes = {Tier(tier): pages for tier, pages in capacity.pages.items()}
    cache = Cache(
        capacity.page, sizes, reuse=config.enable_prefix_caching, below=below, loads=capacity.loads
    )
    knowledge = names.Knowledge(scorer=scorer, weights=weights(config.tenant_weights))
    return Scheduler(
        cache,
        names.ranking(config.scheduling_policy, cache, knowledge),
        names.composer(config.composer, pace),
        _placement(config, cache, lanes, hosted),
        capacity,
        chains=chains,
    )


def _placement(config: Config, cache: Cache, lanes: Lanes | None, hosted: bool) -> OnDemand:
    placed = names.placement(config.memory_policy, cache.hot)
    placed.away = cache.hot if hosted else None
    if config.cpu_attention == "off" or cache.hot != Tier.GPU:
        return placed
    streamed = config.offload != "none"
    patience = 0 if streamed else PATIENT
    if lanes is None or config.cpu_attention != "auto":
        return Hybrid(cache.hot, placed.spare, placed.ahead, patience=patience)
    balance = Balance(lanes, longest=1 if streamed else PASS)
    return Hybrid(cache.hot, placed.spare, placed.ahead, balance=balance, patience=patience)


def ranked(config: Config) -> bool:
    """Whether requests are ranked by predicted lengths."""
    policy = config.scheduling_policy
    return config.ranker != "none" and (policy == "auto" or "learned" in policy)


def told(config: Config) -> Told | None:
    """What passes the predictions of another process to the scheduler, if there are any."""
    return Told() if ranked(config) else None


def check(config: Config) -> None:
    """Raise the `ConfigError`s of `scheduler` before anything is loaded."""
    size = Capacity(1, {int(Tier.CPU): 1}, 1, 1, 1)
    scheduler(config, size, Beside(1), scorer=told(config))


def step_tokens(config: Config, default: int, context: int) -> int:
    """Tokens in one step: as configured, else `default`; a whole context where a composer takes
    prompts whole."""
    tokens = config.max_num_batched_tokens or default
    return max(tokens, context) if names.composer(config.composer, Beside(1)).whole else tokens


def weights(given: list[str]) -> dict[str, float]:
    """`name=weight` of each tenant. Raises `ConfigError`."""
    found = {}
    for item in given:
        name, _, text = item.rpartition("=")
        try:
            weight = float(text)
        except ValueError:
            weight = math.nan
        if not name or not 0 < weight < math.inf:
            raise ConfigError(
                f"--tenant-weights: expected name=weight with a weight above 0, got {item!r}"
            )
        found[name] = weight
    return found
