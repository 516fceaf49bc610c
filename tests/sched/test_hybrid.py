"""Requests whose KV is in main memory: when they come home, and who waits for them."""

from tests.sched.draw import SPEC, check
from tests.shadow import Shadow
from weir.core import Capacity, Plan, Request, Sampling, Tier
from weir.cost.hardware import PRESETS
from weir.cost.lanes import Host, Lanes
from weir.cost.roofline import Roofline
from weir.engine import Engine
from weir.executor.sim import VirtualClock
from weir.kv.cache import Cache
from weir.sched.composer import Chunked
from weir.sched.hybrid import PATIENT, Balance, Hybrid
from weir.sched.ranking import FCFS
from weir.sched.scheduler import Scheduler


class Eager(Balance):
    """Sends away whom it may."""

    def most(self, here, there=0):
        return 8


def engine(
    home: int, away: int, loads: int, depth: int, balance: Balance | None = None, ahead: int = 0
) -> Engine:
    """Pools of so many pages of a token, of which a plan may bring so many home."""
    sizes = {Tier.GPU: home, Tier.CPU: away}
    pages = {int(tier): n for tier, n in sizes.items()}
    capacity = Capacity(1, pages, 64, 8, home, {int(Tier.CPU): loads})
    cache = Cache(1, sizes, loads=capacity.loads)
    placement = Hybrid(Tier.GPU, spare=0.0, ahead=ahead, balance=balance)
    scheduler = Scheduler(cache, FCFS(), Chunked(), placement, capacity)
    return Engine(scheduler, Shadow(capacity, depth=depth), VirtualClock())


def submit(it: Engine, uid: int, prompt: int, wanted: int) -> Request:
    r = Request(uid, [uid * 100 + i for i in range(prompt)], Sampling(max_tokens=wanted), uid)
    it.executor.requests[uid] = r.tokens
    it.add(r)
    return r


def started(it: Engine, r: Request) -> Request:
    """After its first token."""
    while r.told == r.prompt:
        it.step()
        check(it.scheduler)
    return r


def test_nobody_takes_the_room_of_one_that_comes_home():
    for depth in (1, 2):
        it = engine(home=100, away=200, loads=5, depth=depth)
        first = submit(it, 0, 40, 12)
        second = submit(it, 1, 35, 40)
        started(it, second)
        it.step()
        assert {page.tier for page in second.pages} == {Tier.CPU}
        newcomers = []
        while it.busy:
            if first.done and not newcomers:  # its room is what both of these want
                newcomers = [submit(it, uid, 50, 3) for uid in (2, 3)]
            it.step()
            check(it.scheduler)
        assert second.preempted == 1, "it came home once"
        assert it.scheduler.running.recomputed <= depth, "and brought all that it had"
        assert not any(r.preempted for r in newcomers), "nobody started where it could not stay"


def test_one_request_comes_home_at_a_time():
    it = engine(home=100, away=200, loads=5, depth=1)
    first = submit(it, 0, 50, 40)
    others = [submit(it, uid, 28, 60) for uid in (1, 2, 3, 4)]
    most = 0
    while it.busy:
        it.step()
        check(it.scheduler)
        waiting = [r for r in others if r.started >= 0 and not r.running and not r.done]
        most = max(most, len(waiting))
    assert first.done and most == 1
    assert sum(r.preempted for r in others) >= 2


def beside_one(home: int, wanted: int) -> tuple[Engine, list[Plan], Request, list[Request]]:
    """One that decodes at home, and four that want to start."""
    lanes = Lanes(Roofline(SPEC, PRESETS["t4"]), Host(1e15, 1e5, SPEC.layers, 0.0), Tier.CPU)
    it = engine(home=home, away=200, loads=5, depth=1, balance=Eager(lanes))
    first = submit(it, 0, 20, wanted)
    it.step()
    others = [submit(it, uid, 25, 3) for uid in (1, 2, 3, 4)]
    plans, run = [], it.executor.submit
    it.executor.submit = lambda plan: plans.append(plan) or run(plan)
    while not first.done:
        it.step()
        check(it.scheduler)
    return it, plans, first, others


def test_prompts_are_computed_at_home_one_by_one_and_leave():
    """Though home has room for just one of them."""
    it, plans, _, others = beside_one(home=60, wanted=20)
    prompts = [[c for c in plan.chunks if c.length > 1] for plan in plans]
    assert sum(map(len, prompts)) == len(others) and max(map(len, prompts)) == 1
    assert all(chunk.home == Tier.GPU for some in prompts for chunk in some)
    away = {c.uid for plan in plans for c in plan.chunks if c.length == 1 and c.home == Tier.CPU}
    assert away >= {1, 2}
    while it.busy:
        it.step()


def test_prompts_are_computed_away_one_by_one_if_home_has_no_room_for_long():
    it, plans, _, _ = beside_one(home=40, wanted=20)
    prompts = [[c for c in plan.chunks if c.length > 1] for plan in plans]
    assert not any(prompts[: PATIENT - 1]) and any(prompts[PATIENT - 1 :])
    assert max(map(len, prompts)) == 1
    assert all(chunk.home == Tier.CPU for some in prompts for chunk in some)
    while it.busy:
        it.step()


def test_as_many_start_as_both_memories_hold_to_their_end():
    """Pools for one and a half requests and for three: four start, and nobody is evicted."""
    for depth in (1, 2):
        it = engine(home=45, away=90, loads=5, depth=depth, ahead=15)
        it.scheduler.placement.patience = 0  # as where weights are streamed
        all_of_them = [submit(it, uid, 15, 15) for uid in range(5)]
        most = 0
        while it.busy:
            it.step()
            check(it.scheduler)
            most = max(most, sum(bool(r.pages) for r in all_of_them))
        assert most == 4
        assert not any(r.preempted for r in all_of_them)
