"""Requests whose KV is in main memory: when they come home, and who waits for them."""

from tests.sched.draw import check
from tests.shadow import Shadow
from weir.core import Capacity, Request, Sampling, Tier
from weir.engine import Engine
from weir.executor.sim import VirtualClock
from weir.kv.cache import Cache
from weir.sched.composer import Chunked
from weir.sched.hybrid import Hybrid
from weir.sched.ranking import FCFS
from weir.sched.scheduler import Scheduler


def engine(home: int, away: int, loads: int, depth: int) -> Engine:
    """Pools of so many pages of a token, of which a plan may bring so many home."""
    sizes = {Tier.GPU: home, Tier.CPU: away}
    pages = {int(tier): n for tier, n in sizes.items()}
    capacity = Capacity(1, pages, 64, 8, home, {int(Tier.CPU): loads})
    cache = Cache(1, sizes, loads=capacity.loads)
    scheduler = Scheduler(cache, FCFS(), Chunked(), Hybrid(Tier.GPU, spare=0.0), capacity)
    return Engine(scheduler, Shadow(capacity, depth=depth), VirtualClock())


def submit(it: Engine, uid: int, prompt: int, wanted: int) -> Request:
    r = Request(uid, [uid * 100 + i for i in range(prompt)], Sampling(max_tokens=wanted), uid)
    it.executor.requests[uid] = r.tokens
    it.add(r)
    return r


def test_nobody_takes_the_room_of_one_that_comes_home():
    for depth in (1, 2):
        it = engine(home=60, away=200, loads=5, depth=depth)
        first = submit(it, 0, 50, 4)
        second = submit(it, 1, 20, 30)
        it.step()
        assert {page.tier for page in second.pages} == {Tier.CPU}
        newcomers = []
        while it.busy:
            if first.done and not newcomers:  # its room is what both of these want
                newcomers = [submit(it, uid, 30, 3) for uid in (2, 3)]
            it.step()
            check(it.scheduler)
        assert second.preempted == 1, "it came home once"
        assert it.scheduler.running.recomputed <= depth, "and brought all that it had"
        assert not any(r.preempted for r in newcomers), "nobody started where it could not stay"


def test_one_request_comes_home_at_a_time():
    it = engine(home=100, away=200, loads=5, depth=1)
    first = submit(it, 0, 80, 4)
    others = [submit(it, uid, 20, 40) for uid in (1, 2, 3)]
    most = 0
    while it.busy:
        it.step()
        check(it.scheduler)
        waiting = [r for r in others if r.started >= 0 and not r.running and not r.done]
        most = max(most, len(waiting))
    assert first.done and most == 1
    assert sum(r.preempted for r in others) >= 2
