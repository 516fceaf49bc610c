"""What each ranking promises, on the real scheduler over a checked executor."""

import logging
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.sched.draw import check
from tests.shadow import Shadow, expected
from weir.core import Capacity, Request, Sampling, Tier
from weir.engine import Engine
from weir.executor.sim import VirtualClock
from weir.kv.cache import Cache
from weir.sched.composer import Chunked
from weir.sched.hybrid import Hybrid
from weir.sched.names import Knowledge, ranking
from weir.sched.placement import Estimate, OnDemand
from weir.sched.scheduler import Scheduler
from weir.sched.shortest import PROMPT, Shortest


def engine(
    policy: str, *, pages=4000, tokens=64, requests=4, page=1, placement=OnDemand, **knowledge
) -> Engine:
    sizes = dict.fromkeys([Tier.GPU, Tier.CPU] if placement is Hybrid else [Tier.CPU], pages)
    home, cache = min(sizes), Cache(page, sizes)
    capacity = Capacity(page, {int(t): n for t, n in sizes.items()}, tokens, requests, pages * page)
    made = ranking(policy, cache, Knowledge(**knowledge))
    scheduler = Scheduler(cache, made, Chunked(), placement(home, spare=0.0), capacity)
    return Engine(scheduler, Shadow(capacity), VirtualClock())


def submit(it: Engine, uid: int, wanted: int, prompt: int = 4, **fields) -> Request:
    rng = random.Random(uid)
    tokens = [rng.randrange(1, 50) for _ in range(prompt)]
    r = Request(uid, tokens, Sampling(max_tokens=wanted), float(uid), **fields)
    it.executor.requests[uid] = r.tokens
    it.add(r)
    return r


def ends(it: Engine, steps: int = 5000) -> list[int]:
    """Run to the end; uids in the order they ended."""
    order = []
    for _ in range(steps):
        order += [delta.uid for delta in it.step() if delta.done]
        if not it.busy:
            return order
    raise AssertionError("never finished")


def starts(it: Engine) -> list[int]:
    """Uids in the order they were first computed."""
    seen: dict[int, None] = {}
    for plan in it.executor.plans:
        seen.update((chunk.uid, None) for lane in plan.lanes for chunk in lane)
    return list(seen)


def test_shortest_runs_the_least_work_first_and_classes_before_that():
    it = engine("shortest", requests=1)
    for uid, (wanted, prompt, priority) in enumerate(
        [(9, 4, 0), (5, 4, 0), (2, 60, 0), (1, 1, 1), (3, 4, 0)]
    ):
        submit(it, uid, wanted, prompt, priority=priority)
    assert ends(it) == [4, 1, 0, 2, 3]


def test_what_is_cached_is_no_work():
    it = engine("shortest", requests=1)
    submit(it, 0, 1, 60)
    it.step()
    same = Request(1, [*it.executor.requests[0][:60], 7], Sampling(max_tokens=2), 1.0)
    it.executor.requests[1] = same.tokens
    submit(it, 2, 9, 6)
    it.add(same)
    assert ends(it) == [1, 2]


def test_a_shorter_newcomer_takes_a_place_only_if_told_so():
    for policy, first in (("shortest", 0), ("shortest(preempt=true)", 1)):
        it = engine(policy, requests=1)
        long = submit(it, 0, 40)
        for _ in range(5):
            it.step()
        submit(it, 1, 3)
        assert ends(it)[0] == first
        assert long.preempted == first  # the long one waited, once


@pytest.mark.parametrize("placement", [OnDemand, Estimate, Hybrid])
def test_an_urgent_request_takes_the_slot_of_a_lesser_one(placement):
    it = engine("fcfs", requests=2, placement=placement)
    lesser = [submit(it, uid, 30, priority=1) for uid in (0, 1)]
    for _ in range(4):
        it.step()
    submit(it, 2, 3, priority=0)
    assert ends(it)[0] == 2
    assert [r.preempted for r in lesser] == [0, 1]


def test_a_newcomer_that_could_not_fit_even_so_evicts_nobody():
    """LTR's code lets a large request of high rank swap many short ones out in vain."""
    it = engine("fcfs", pages=60, requests=8)
    first = submit(it, 0, 20, 20, priority=0)
    lesser = [submit(it, uid, 8, 4, priority=2) for uid in (1, 2, 3)]
    for _ in range(3):
        it.step()
    submit(it, 9, 2, 50, priority=1)  # 50 pages; the first, which ranks before, holds over 20
    while first.done is None and not any(r.done for r in lesser):
        it.step()
    assert all(r.preempted == 0 for r in lesser)
    ends(it)


class Late:
    """Scores that come when they are released."""

    def __init__(self, scores: dict[int, float]):
        self.scores, self.released, self.batches = scores, False, []

    def __call__(self, new):
        self.batches += [[r.uid for r in new]] if new else []
        found = [*self.scores.items()] if self.released else []
        self.scores = {} if self.released else self.scores
        return found


def test_scores_come_in_batches_and_late_and_order_those_who_still_wait():
    scorer = Late({uid: 100.0 - uid for uid in range(8)})
    it = engine("learned", requests=1, scorer=scorer)
    for uid in range(6):
        submit(it, uid, 200)
    for _ in range(3):
        it.step()
    assert scorer.batches == [[0, 1, 2, 3, 4, 5]]
    assert starts(it) == [0]  # unknown: as they came
    scorer.released = True
    for _ in range(6):
        it.step()
        check(it.scheduler)
        it.abort(starts(it)[-1])
    assert starts(it) == [0, 5, 4, 3, 2, 1]


def test_a_scorer_that_fails_is_switched_off_with_one_warning(caplog):
    class Broken(Late):
        def __call__(self, new):
            raise ValueError("weights of another version")

    it = engine("aging(fair(learned))", requests=2, scorer=Broken({}))
    prompts = [submit(it, uid, 5) for uid in range(6)]
    answers = [expected(r.tokens, 5) for r in prompts]
    with caplog.at_level(logging.WARNING):
        assert ends(it) == [0, 1, 2, 3, 4, 5]
    assert [r.tokens[r.prompt :] for r in prompts] == answers
    assert len(caplog.records) == 1 and "weights of another version" in caplog.text
    assert "weights of another version" in it.scheduler.ranking.degraded


def test_feedback_queues_lower_whoever_had_more():
    it = engine("mlfq(quantum=4)", requests=1)
    long = submit(it, 0, 40)
    for _ in range(6):
        it.step()
    submit(it, 1, 4)
    assert ends(it) == [1, 0]
    assert long.preempted == 1 and it.stats().recomputed_tokens == 0  # it found its pages again


def served(it: Engine, users: dict[int, str]) -> dict[str, int]:
    out = dict.fromkeys(users.values(), 0)
    for plan in it.executor.plans:
        for lane in plan.lanes:
            for chunk in lane:
                out[users[chunk.uid]] += chunk.length
    return out


@settings(max_examples=8)
@given(st.integers(0, 2**32), st.sampled_from([{}, {"a": 3.0}, {"b": 0.5, "a": 2.0}]))
def test_tenants_that_wait_all_the_time_are_served_by_weight(seed, weights):
    """However many requests each sends, of whatever size: what differs is at most what a batch
    holds of one tenant (the bound of Sheng et al., Theorem 4.4, in tokens of this engine)."""
    rng = random.Random(seed)
    slots, longest = 4, 30
    it = engine("fair(fcfs)", requests=slots, tokens=40, weights=weights)
    users = {}
    for uid in range(400):
        users[uid] = "aaaab"[uid % 5] if uid % 7 else "c"
        submit(it, uid, rng.randrange(1, 15), rng.randrange(1, 15), user=users[uid])
    backlog = {"a", "b", "c"}
    while backlog == {r.user for r in it.scheduler.waiting}:
        it.step()
    got = served(it, users)
    shares = [got[user] / weights.get(user, 1.0) for user in sorted(backlog)]
    lightest = min(weights.get(user, 1.0) for user in backlog)
    assert max(shares) - min(shares) <= 2 * slots * longest / lightest
    assert min(shares) > 3 * slots * longest  # it went on for long enough to tell


def test_idling_earns_no_credit():
    it = engine("fair(fcfs)", requests=1)
    users = dict.fromkeys(range(40), "busy") | dict.fromkeys(range(100, 140), "late")
    for uid in range(40):
        submit(it, uid, 6, user="busy")
    for _ in range(100):
        it.step()
    before = served(it, users)["busy"]
    assert before > 90
    for uid in range(100, 140):
        submit(it, uid, 6, user="late")
    for _ in range(100):
        it.step()
    got = served(it, users)
    assert abs((got["busy"] - before) - got["late"]) <= 20  # and not `before` more for the late one


def test_a_tenant_that_is_gone_is_forgotten():
    it = engine("fair(fcfs)")
    for uid in range(3000):
        submit(it, uid, 1, 2, user=f"user {uid}")
        it.step()
    while it.busy:
        it.step()
    fair = it.scheduler.ranking
    assert not fair.live and not fair.waiting and not fair.queued
    assert len(fair.counters) <= 1030
    assert len(fair.counters) > 100


def waits(it: Engine, requests: dict[int, int], steps: int) -> dict[int, int]:
    """Steps that each request, by the step in which it came, waited to start."""
    out = {}
    for step in range(steps):
        for uid in [uid for uid, when in requests.items() if when == step]:
            submit(it, uid, 300 if uid == 0 else 4, 4)
        it.step()
        for lane in it.executor.plans[-1].lanes if it.executor.plans else []:
            for chunk in lane:
                out.setdefault(chunk.uid, step - requests[chunk.uid])
    return out


def test_without_aging_a_stream_of_short_requests_starves_a_long_one():
    stream = {0: 2} | {uid: uid for uid in range(1, 400)}
    assert 0 not in waits(engine("shortest", requests=2), stream, 400)
    aged = waits(engine("aging(shortest, threshold=50)", requests=2), stream, 400)
    assert aged[0] <= 50 + 10 + 5


@settings(max_examples=8)
@given(
    st.integers(0, 2**32),
    st.sampled_from(["shortest", "mlfq(quantum=2)", "fair(shortest)"]),
    st.sampled_from([0.0, 0.7]),
)
def test_nobody_waits_longer_than_aging_promises(seed, inner, patience):
    """The bound that `Aging` states, with prompts of one step and memory for everyone."""
    rng = random.Random(seed)
    threshold, quantum, slots, count = 20, 3, 4, 60
    options = f"threshold={threshold}, quantum={quantum}, patience={patience}"
    it = engine(f"aging({inner}, {options})", requests=slots)
    came = sorted(rng.randrange(0, 40) for _ in range(count))
    first: dict[int, int] = {}
    slowest = 1.0
    step = 0
    while it.busy or step <= 40:
        for uid in [uid for uid, when in enumerate(came) if when == step]:
            submit(it, uid, rng.choice([1, 5, 40, 80]), rng.randrange(1, 8), user=str(uid % 3))
        it.step()
        slowest = min(slowest, it.scheduler.ranking.rate)
        if it.executor.plans:
            for lane in it.executor.plans[-1].lanes:
                for chunk in lane:
                    first.setdefault(chunk.uid, step)
        step += 1
    prefill = 1  # four prompts of at most 7 tokens beside decodes, in steps of 64
    turns = count / 64 + (count // slots + 1) * (quantum + prefill)
    for uid, when in enumerate(came):
        patient = threshold + patience * uid / slowest if patience else 0
        assert first[uid] - when <= threshold + patient + turns


def test_with_patience_a_crowd_does_not_age_as_one():
    """In the paper's order a burst that takes longer than the threshold ends as a round robin."""

    def preempted(options: str) -> int:
        it = engine(f"aging(shortest, {options.format('threshold=20')})", requests=4)
        for uid in range(60):
            submit(it, uid, 5 + 7 * uid % 40)
        ends(it)
        return it.scheduler.running.preemptions

    paper, patient = preempted("{}"), preempted("{}, patience=3")
    assert patient < paper / 2 and paper > 40


def test_a_long_prompt_has_its_turn_even_if_chunks_outnumber_the_quantum():
    """LTR counts scheduled steps; a prompt of more chunks than that would never get a token."""
    it = engine("aging(shortest, threshold=10, quantum=2)", requests=2, tokens=4)
    long = submit(it, 0, 3, 60)
    for step in range(1, 250):
        submit(it, step, 2, 1)
        it.step()
        if long.done:
            break
    assert long.done == "length"


@pytest.mark.parametrize("policy", ["queued(shortest)", "queued(aging(shortest))", "auto"])
def test_a_short_queue_is_first_come_first_served(policy):
    """The default has no loss where there is no queue: its plans are those of `fcfs`."""

    def plans(policy: str, count: int):
        scorer = Late({uid: float(uid * 7919 % 83) for uid in range(count)})
        scorer.released = True
        it = engine(policy, requests=4, scorer=scorer)
        rng = random.Random(3)
        for uid in range(count):
            submit(it, uid, rng.randrange(1, 20), rng.randrange(1, 20))
        ends(it)
        return it.executor.plans

    assert plans(policy, 31) == plans("fcfs", 31)
    assert plans(policy, 60) != plans("fcfs", 60)


def test_without_a_ranker_prompts_that_share_nothing_are_served_as_they_come():
    """And where they do share, a queue is ordered by it."""

    def plans(policy: str, shared: int):
        it = engine(policy, requests=2, page=4, tokens=32)
        rng = random.Random(3)
        for uid in range(60):
            r = submit(it, uid, rng.randrange(1, 20), rng.randrange(shared + 1, 30))
            r.tokens[:shared] = [1 + uid % 5] * shared
        ends(it)
        return it.executor.plans

    assert plans("auto", shared=0) == plans("fcfs", shared=0)
    assert plans("auto", shared=12) != plans("fcfs", shared=12)


def test_length_is_what_the_caller_knows():
    known = {0: 5.0, 1: 3.0, 2: 9.0}
    assert Shortest(lambda r: known[r.uid]).key(
        Request(1, [1, 2], Sampling(max_tokens=100), 0.0)
    ) == (0, True, 3.0 + 2 * PROMPT)


def test_calls_of_a_program_stand_where_its_first_call_did():
    it = engine("programs(fcfs)", requests=1)
    for uid, program in enumerate(["a", "b", "", "a", "b", "a"]):
        submit(it, uid, 2, program=program)
    submit(it, 6, 2, program="c", priority=-1)
    assert starts_after(it) == [6, 0, 3, 5, 1, 4, 2]
    submit(it, 7, 2, program="c")  # nothing of it is live, but it began before the next
    submit(it, 8, 2, program="d")
    it.scheduler.ranking.since["c"] = 6.0
    assert starts_after(it)[-2:] == [7, 8]
    assert not it.scheduler.ranking.live


def test_choices_that_are_scored_together_compute_their_prompt_once():
    it, prompt = engine("fcfs", page=4, tokens=256, requests=8), [*range(1, 50)] * 3
    for uid in range(4):
        sampling = Sampling(max_tokens=0, prompt_logprobs=0, score_from=len(prompt))
        r = Request(uid, [*prompt, uid + 1, 7], sampling, float(uid))
        it.executor.requests[uid] = r.tokens
        it.add(r)
    ends(it)
    computed = sum(plan.tokens for plan in it.executor.plans)
    assert computed <= len(prompt) + 4 * (2 + 4 + 1)


def test_programs_that_ended_are_forgotten_in_the_end(monkeypatch):
    monkeypatch.setattr("weir.sched.programs.KEPT", 4)
    it = engine("programs(fcfs)", requests=2)
    for uid in range(40):
        submit(it, uid, 1, program=f"p{uid}")
        ends(it)
    known = it.scheduler.ranking.since
    assert len(known) <= 8 and "p39" in known and "p0" not in known


def starts_after(it: Engine) -> list[int]:
    ends(it)
    return starts(it)
