"""From a `Config` to a scheduler: the names of policies and the classes behind them.

Apart from `weir.build` because a simulation makes the same scheduler and needs no PyTorch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from weir.config import Config
from weir.core import Capacity, Tier
from weir.cost.target import Cost, Target
from weir.kv.cache import Cache
from weir.sched.composer import Beside, Chunked, Pace, Whole
from weir.sched.placement import OnDemand
from weir.sched.prefix import LongestPrefix, Matches
from weir.sched.ranking import FCFS
from weir.sched.scheduler import Scheduler


@dataclass(frozen=True, slots=True)
class Defaults:
    """What a device is given where the configuration leaves the choice (docs/results.md)."""

    page: int
    tokens: int
    beside: int  # prompt tokens in a step that also decodes
    requests: int


DEFAULTS = {"cpu": Defaults(4, 512, 64, 64), "cuda": Defaults(16, 4096, 4096, 256)}


def pace(config: Config, defaults: Defaults, tokens: int, cost: Callable[[], Cost]) -> Pace:
    """How much prompt goes beside decodes, in steps of at most `tokens`. `cost` is called only if
    there is a latency target. Raises `ConfigError` for one that cannot be met."""
    if config.target_tbt:
        return Target(cost(), config.target_tbt, tokens)
    return Beside(config.max_prefill_beside_decode or defaults.beside)


def scheduler(config: Config, capacity: Capacity, pace: Pace, *, chains: bool = True) -> Scheduler:
    """The scheduler that `config` describes, over what an executor can hold."""
    sizes = {Tier(tier): pages for tier, pages in capacity.pages.items()}
    cache = Cache(capacity.page, sizes, reuse=config.enable_prefix_caching)
    return Scheduler(
        cache,
        LongestPrefix(Matches(cache)) if config.scheduling_policy == "lpm" else FCFS(),
        Whole() if config.composer == "whole" else Chunked(pace),
        OnDemand(cache.hot),
        capacity,
        chains=chains,
    )


def step_tokens(config: Config, default: int, context: int) -> int:
    """Tokens in one step: as configured, else `default`; a whole context where a composer takes
    prompts whole."""
    tokens = config.max_num_batched_tokens or default
    return max(tokens, context) if config.composer == "whole" else tokens
