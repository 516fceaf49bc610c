"""The local executor under hand-made plans, and under the real scheduler and engine."""

import random
import threading

import pytest

from tests.audit import audit
from tests.reference import Tiny, dense, generate, logprobs
from tests.runtime.drive import EVERY, Drive, runner
from weir.core import Request, Sampling, Tier
from weir.engine import Engine
from weir.errors import EngineDead
from weir.executor.local import Direct, Local
from weir.kv.cache import Cache
from weir.runtime.graphs import Graphs
from weir.runtime.runner import Runner
from weir.sched.composer import Chunked, Whole
from weir.sched.placement import OnDemand
from weir.sched.ranking import FCFS
from weir.sched.scheduler import Scheduler

MODEL = Tiny()


def local(run: Runner, depth: int = 2, tokens: int = 64) -> Local:
    return Local(run, tokens=tokens, requests=16, context=128, depth=depth, threads=1)


@pytest.fixture
def executor():
    executor = local(runner(MODEL))
    yield executor
    executor.close()
    assert not executor.thread.is_alive()


def test_capacity_is_the_stores(executor):
    assert executor.capacity.page == 4 and executor.capacity.pages == {Tier.CPU: 256}


def test_plans_chain_before_their_tokens_are_read(executor):
    drive, tokens = Drive(executor.runner), [5, 9, 1]
    want = generate(MODEL, tokens, 6)
    plans = [drive.plan([drive.chunk(1, 0, tokens, sample=EVERY)])]
    plans += [drive.plan([drive.chunk(1, 3 + n, [], sample=EVERY)]) for n in range(5)]
    handles = [executor.submit(plan) for plan in plans]
    results = [handle.result() for handle in handles]
    assert [result.tokens[1] for result in results] == want
    assert all(result.seconds > 0 for result in results)


def test_submit_does_not_wait(executor):
    drive, gate = Drive(executor.runner), threading.Event()
    launch = executor.runner.launch
    executor.runner.launch = lambda plan, prepared: gate.wait(60) and launch(plan, prepared)
    handles = [
        executor.submit(drive.plan([drive.chunk(uid, 0, [uid], sample=EVERY)])) for uid in (1, 2)
    ]
    assert not any(handle.launched.done() for handle in handles)
    gate.set()
    assert [handle.result().tokens for handle in handles] == [
        {uid: generate(MODEL, [uid], 1)[0]} for uid in (1, 2)
    ]


def test_a_result_comes_while_the_next_plan_computes(executor):
    drive, begin, go_on = Drive(executor.runner), threading.Event(), threading.Event()
    plans = [drive.plan([drive.chunk(uid, 0, [uid], sample=EVERY)]) for uid in (1, 2)]
    launch = executor.runner.launch

    def slow(plan, prepared):
        def computes():
            prepared()
            assert plan is plans[0] or go_on.wait(60)

        assert begin.wait(60)
        return launch(plan, computes)

    executor.runner.launch = slow
    first, second = map(executor.submit, plans)
    begin.set()
    assert 1 in first.result().tokens and not second.launched.done()
    go_on.set()
    assert 2 in second.result().tokens


def test_a_broken_plan_ends_every_plan_that_follows(executor):
    drive = Drive(executor.runner)
    good = executor.submit(drive.plan([drive.chunk(1, 0, [1], sample=EVERY)]))
    drive.pages[2] = drive.take(1, 1)  # the executor is not told of this page
    broken = executor.submit(drive.plan([drive.chunk(2, 0, [1], sample=EVERY)]))
    after = executor.submit(drive.plan([drive.chunk(1, 1, [], sample=EVERY)]))
    assert 1 in good.result().tokens
    for handle in (broken, after, executor.submit(drive.plan())):
        with pytest.raises(EngineDead, match="past the pages") as caught:
            handle.result()
        assert isinstance(caught.value.__cause__, RuntimeError)


def test_closing_finishes_what_was_submitted():
    executor = local(runner(MODEL))
    drive = Drive(executor.runner)
    handles = [
        executor.submit(drive.plan([drive.chunk(uid, 0, [uid], sample=EVERY)])) for uid in range(9)
    ]
    executor.close()
    executor.close()
    assert all(uid in handle.result().tokens for uid, handle in enumerate(handles))
    with pytest.raises(EngineDead, match="closed"):
        executor.submit(drive.plan())


def test_a_device_with_a_queue_needs_no_thread():
    executor = Direct(runner(MODEL), tokens=64, requests=16, context=128)
    drive, tokens = Drive(executor.runner), [5, 9, 1]
    plans = [drive.plan([drive.chunk(1, 0, tokens, sample=EVERY)])]
    plans += [drive.plan([drive.chunk(1, 3 + n, [], sample=EVERY)]) for n in range(3)]
    handles = [executor.submit(plan) for plan in plans]
    assert [handle.result().tokens[1] for handle in handles] == generate(MODEL, tokens, 4)
    drive.pages[2] = drive.take(1, 1)  # the executor is not told of this page
    for plan in (drive.plan([drive.chunk(2, 0, [1], sample=EVERY)]), drive.plan()):
        with pytest.raises(EngineDead, match="past the pages"):
            executor.submit(plan).result()
    executor.close()
    with pytest.raises(EngineDead, match="closed"):
        executor.submit(drive.plan())


@pytest.mark.parametrize("kind", [Local, Direct])
@pytest.mark.parametrize("shapes", [[], [1, 2, 4]])
def test_masks_may_come_after_their_plan_was_submitted(kind, shapes):
    """Two requests fly; the second token of one must wait for a mask, then everybody's does."""
    run = runner(MODEL, graphs=Graphs(shapes))
    executor = kind(run, tokens=64, requests=16, context=128)
    drive, greedy = Drive(run), Sampling(temperature=0.0)
    odd = bytes([0b10101010] * 8)
    chunks = [drive.chunk(uid, 0, [uid], sample=EVERY) for uid in (1, 2)]
    first = executor.submit(drive.plan(chunks))
    plan = drive.plan(
        [
            drive.chunk(1, 1, [], sample=greedy, late=True),
            drive.chunk(2, 1, [], sample=greedy),
        ]
    )
    second = executor.submit(plan)
    executor.choose({1: odd})
    third = executor.submit(drive.plan([drive.chunk(1, 2, [], sample=greedy, late=True)]))
    executor.choose({})  # whoever is not named needs no token: any will do
    got = [handle.result().tokens for handle in (first, second, third)]
    executor.close()
    assert got[0][1] == generate(MODEL, [1], 1)[0]
    assert [tokens[2] for tokens in got[:2]] == generate(MODEL, [2], 2)
    order = logprobs(MODEL, [1, got[0][1]])[-1].argsort(descending=True).tolist()
    assert got[1][1] == next(token for token in order if token % 2)
    assert got[2].keys() == {1}


def test_closing_does_not_wait_for_masks(executor):
    drive = Drive(executor.runner)
    executor.submit(drive.plan([drive.chunk(1, 0, [1], sample=EVERY, late=True)]))
    executor.close()


def test_a_plan_without_its_masks_ends_every_plan_that_follows():
    executor = Direct(runner(MODEL), tokens=64, requests=16, context=128)
    drive = Drive(executor.runner)
    executor.submit(drive.plan([drive.chunk(1, 0, [1], sample=EVERY, late=True)]))
    with pytest.raises(EngineDead, match="never came"):
        executor.submit(drive.plan([drive.chunk(1, 1, [], sample=EVERY)])).result()
    with pytest.raises(EngineDead, match="never came"):
        executor.choose({})


def serve(requests: list[Request], *, page, pages, depth, tokens, composer, reuse=True):
    """Run requests to their ends; their tokens and deltas by uid."""
    executor = local(runner(MODEL, page, {1: pages}), depth, tokens)
    cache = Cache(page, {Tier.CPU: pages}, reuse=reuse)
    engine = Engine(
        Scheduler(cache, FCFS(), composer, OnDemand(Tier.CPU), executor.capacity), executor
    )
    out: dict[int, list[int]] = {r.uid: [] for r in requests}
    last = {}
    try:
        for r in requests:
            engine.add(r)
        for _ in range(2000):
            if not engine.busy:
                break
            for delta in engine.step():
                out[delta.uid] += delta.tokens
                if delta.done:
                    last[delta.uid] = delta
        assert not engine.busy and last.keys() == out.keys()
        audit(cache)
    finally:
        engine.close()
    return out, last, engine


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("reuse", [True, False])
@pytest.mark.parametrize(
    ("page", "pages", "tokens", "composer"),
    [(1, 400, 16, Chunked()), (4, 12, 12, Chunked()), (16, 8, 40, Chunked()), (4, 24, 64, Whole())],
)
def test_the_engine_gives_the_reference_tokens(depth, reuse, page, pages, tokens, composer):
    """Shared prefixes, chunks, and pools so small that requests are preempted."""
    pick = random.Random(4)
    head = pick.choices(range(61), k=20)
    prompts = [head[: pick.randrange(1, 20)] + pick.choices(range(61), k=3) for _ in range(8)]
    requests = [
        Request(uid, list(p), Sampling(temperature=0, max_tokens=9), arrival=0.0)
        for uid, p in enumerate(prompts)
    ]
    out, last, engine = serve(
        requests, page=page, pages=pages, depth=depth, tokens=tokens, composer=composer, reuse=reuse
    )
    assert out == {uid: generate(MODEL, p, 9) for uid, p in enumerate(prompts)}
    assert {delta.done for delta in last.values()} == {"length"}
    if pages < 30:
        assert engine.scheduler.running.preemptions > 0


def test_sampled_tokens_do_not_depend_on_company_or_memory():
    wishes = [
        {"temperature": 1.0},
        {"temperature": 0.7, "top_k": 20, "top_p": 0.9},
        {"temperature": 1.2, "repetition_penalty": 1.3, "frequency_penalty": 0.4},
        {"temperature": 1.0, "min_p": 0.05, "presence_penalty": 0.8, "logit_bias": {3: 2.0}},
    ]
    prompts = [[7, 7, 8, uid, 9, 1, 2, 3, 4] for uid in range(8)]
    requests = [
        Request(uid, list(p), Sampling(seed=uid, max_tokens=12, **wishes[uid % 4]), arrival=0.0)
        for uid, p in enumerate(prompts)
    ]

    def again(some):
        return [Request(r.uid, r.tokens[: r.prompt], r.sampling, arrival=0.0) for r in some]

    roomy = {"page": 4, "pages": 200, "depth": 1, "tokens": 64, "composer": Whole()}
    tight = {"page": 4, "pages": 9, "depth": 2, "tokens": 16, "composer": Chunked()}
    alone = {}
    for r in requests:
        alone |= serve(again([r]), **roomy)[0]
    together, _, engine = serve(again(requests), **tight)
    assert engine.scheduler.running.preemptions > 0
    assert together == alone
    assert len({tuple(tokens) for tokens in alone.values()}) > 6


def test_a_pooled_and_a_scored_request_among_others():
    prompts = {1: [4, 5, 6, 7, 8, 9, 10], 2: [1, 2, 3, 4, 5], 3: [9, 8, 7, 6, 5, 4]}
    requests = [
        Request(1, list(prompts[1]), Sampling(max_tokens=0, pool="mean"), arrival=0.0),
        Request(2, list(prompts[2]), Sampling(temperature=0, max_tokens=4), arrival=0.0),
        Request(3, list(prompts[3]), Sampling(max_tokens=1, prompt_logprobs=2), arrival=0.0),
    ]
    out, last, _ = serve(requests, page=2, pages=64, depth=2, tokens=4, composer=Chunked())
    states = MODEL.hidden(dense(MODEL, prompts[1])).mean(0)
    assert last[1].vector == pytest.approx((states / states.norm()).tolist(), abs=1e-5)
    assert out[2] == generate(MODEL, prompts[2], 4)
    assert last[3].done == "length" and len(out[3]) == 1
