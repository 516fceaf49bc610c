"""The names of policies, as they are written on a command line, and the classes behind them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from msgspec import Meta

from weir.core import Request, Tier
from weir.errors import ConfigError
from weir.kv.cache import Cache
from weir.sched.aging import Aging, Queued
from weir.sched.composer import Chunked, Composer, Least, Pace, PrefillFirst, Static, Taper, Whole
from weir.sched.expression import Expression, parse
from weir.sched.fair import Fair
from weir.sched.placement import Estimate, OnDemand, Reserve
from weir.sched.prefix import DepthFirst, LongestPrefix, Matches
from weir.sched.programs import Programs
from weir.sched.ranking import FCFS, Feedback, Ranking
from weir.sched.shortest import Learned, Scorer, Shortest, promised

Count = Annotated[int, Meta(ge=1)]
Factor = Annotated[float, Meta(ge=0)]
Share = Annotated[float, Meta(ge=0, le=1)]


@dataclass(frozen=True, slots=True)
class Knowledge:
    """What rankings know beside the requests.

    length: tokens of a whole answer, for `shortest`. scorer: predicts them, for `learned`."""

    length: Callable[[Request], float] = promised
    scorer: Scorer | None = None
    weights: Mapping[str, float] = field(default_factory=dict)  # of tenants, for `fair`


PLAIN = "fcfs lpm dfs-weight shortest learned mlfq"
AUTO = "queued(aging({}, threshold=400, patience=1))"
"""Once a queue is there, shortest first where lengths are predicted, else whoever finds most of its
prompt in the cache. Who has waited 400 steps longer than its turn would have taken in order of
arrival is overdue (docs/scheduling.md)."""


def ranking(text: str, cache: Cache, knowledge: Knowledge | None = None) -> Ranking:
    """The ranking that `--scheduling-policy` names. Raises `ConfigError`."""
    knowledge = knowledge or Knowledge()
    if text == "auto":
        text = AUTO.format("learned" if knowledge.scorer else "lpm")
    return _ranking(parse(text, "--scheduling-policy"), cache, knowledge)


def _ranking(e: Expression, cache: Cache, knowledge: Knowledge) -> Ranking:
    def around(**kinds: Any) -> tuple[Ranking, dict[str, Any]]:
        options = e.read(kinds, most=1, least=1)
        return _ranking(e.inner[0], cache, knowledge), options

    match e.name:
        case "fcfs":
            return FCFS(**e.read({}))
        case "lpm":
            return LongestPrefix(Matches(cache, **e.read({"limit": Count})))
        case "dfs-weight":
            return DepthFirst(cache, **e.read({"limit": Count}))
        case "mlfq":
            return Feedback(**e.read({"quantum": Count, "growth": Count}))
        case "shortest" | "learned":
            options = e.read({"preempt": bool, "limit": Count})
            matches = Matches(cache, options.pop("limit", 128))
            if e.name == "shortest":
                return Shortest(knowledge.length, matches, **options)
            if knowledge.scorer is None:
                raise ConfigError(
                    f"{e.where}: learned needs a ranker, and there is none (a simulation has no "
                    "text to rank): take shortest"
                )
            return Learned(matches=matches, scorer=knowledge.scorer, **options)
        case "fair":
            inner, _ = around()
            return Fair(inner, knowledge.weights)
        case "aging":
            inner, options = around(threshold=Count, quantum=Count, patience=Factor)
            return Aging(inner, **options)
        case "programs":
            inner, _ = around()
            return Programs(inner)
        case "queued":
            inner, options = around(least=Count)
            return Queued(inner, **options)
    raise _unknown(e, f"{PLAIN} fair(…) aging(…) queued(…) programs(…) auto")


def composer(text: str, pace: Pace) -> Composer:
    """The composer that `--composer` names; `pace` bounds the prompts of one that cuts them."""
    e = parse(text, "--composer")
    match e.name:
        case "chunked":
            options = e.read({"tile": Count}, most=1)
            return Chunked(Least((pace, *map(_taper, e.inner))) if e.inner else pace, **options)
        case "whole":
            return Whole(**e.read({}))
        case "prefill-first":
            return PrefillFirst(**e.read({}))
        case "static":
            return Static(**e.read({}))
    raise _unknown(e, "chunked whole prefill-first static")


def _taper(e: Expression) -> Taper:
    if e.name != "taper":
        raise _unknown(e, "taper")
    given = e.read({"first": Count, "last": Count, "reach": Count, "stages": Count})
    return Taper(**given)


def placement(text: str, home: Tier) -> OnDemand:
    """The placement that `--memory-policy` names, on one tier."""
    e = parse(text, "--memory-policy")
    match e.name:
        case "on-demand":
            return OnDemand(home, **e.read({"spare": Share, "ahead": Count}))
        case "reserve":
            return Reserve(home, **e.read({}))
        case "estimate":
            kinds = {"initial": Share, "least": Share, "steps": Count}
            return Estimate(home, **e.read(kinds))
    raise _unknown(e, "on-demand reserve estimate")


def _unknown(e: Expression, known: str) -> ConfigError:
    names = ", ".join(known.split())
    return ConfigError(f"{e.where}: there is no {e.name}; there is {names}")
