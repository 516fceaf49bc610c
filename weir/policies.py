"""From a `Config` to a scheduler: the names of policies and the classes behind them.

Apart from `weir.build` because a simulation makes the same scheduler and needs no PyTorch.
"""

from __future__ import annotations

from weir.config import Config
from weir.core import Capacity, Tier
from weir.kv.cache import Cache
from weir.sched.composer import Beside, Chunked, Pace, Whole
from weir.sched.placement import OnDemand
from weir.sched.ranking import FCFS, LongestPrefix
from weir.sched.scheduler import Scheduler


def scheduler(
    config: Config, capacity: Capacity, *, pace: Pace | None = None, chains: bool = True
) -> Scheduler:
    """The scheduler that `config` describes, over what an executor can hold. `pace`: how much
    prompt goes beside decodes, where the configuration does not say."""
    beside = config.max_prefill_beside_decode
    chunked = Chunked(Beside(beside) if beside else pace)
    sizes = {Tier(tier): pages for tier, pages in capacity.pages.items()}
    cache = Cache(capacity.page, sizes, reuse=config.enable_prefix_caching)
    return Scheduler(
        cache,
        LongestPrefix(cache) if config.scheduling_policy == "lpm" else FCFS(),
        Whole() if config.composer == "whole" else chunked,
        OnDemand(cache.hot),
        capacity,
        chains=chains,
    )


def step_tokens(config: Config, default: int, context: int) -> int:
    """Tokens in one step: as configured, else `default`; a whole context where a composer takes
    prompts whole."""
    tokens = config.max_num_batched_tokens or default
    return max(tokens, context) if config.composer == "whole" else tokens
