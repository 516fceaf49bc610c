"""What plans take whose decodes may be the host's, beside NEO's formula, and who takes part."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weir.core import Chunk, Plan, Request, Sampling, Segment, Tier
from weir.cost.lanes import PARTS, Host, Lanes, Share
from weir.cost.work import Work
from weir.sched.hybrid import Balance

HOST = Host(rate=1e9, token=1e3, layers=1, layer_seconds=0.0, launch=0.0)  # 1 us a token


class Flat:
    """A device that takes 10 ms a lane, and 10 us a prompt token."""

    def seconds(self, work: Work) -> float:
        prompts = sum(length for length, _ in work.prompts)
        return 0.01 + 1e-5 * prompts if work.tokens else 0.0


def decode(uid: int, context: int, home: Tier) -> Chunk:
    return Chunk(uid, context - 1, [], [], home, Sampling())


def waiting(*contexts: int) -> list[Request]:
    made = [Request(uid, [0] * n, Sampling(), 0.0) for uid, n in enumerate(contexts)]
    for r in made:
        r.computed = len(r.tokens)
    return made


@given(*[st.floats(0, 10)] * 4)
def test_two_lanes_are_neos(linear, other, reads, others):
    """max(Tl0 + Tga0, Tca1) + max(Tl1, Tca0), where lane 0 begins."""

    class Device:
        def seconds(self, work: Work) -> float:
            return other if work.rows else linear

    host = Host(rate=1.0, token=1.0, layers=1, layer_seconds=0.0, launch=0.0)
    lanes = Lanes(Device(), host, Tier.CPU)
    shares = [Share(Work(0, [1]), reads), Share(Work(1, [1]), others)]
    if not reads and not others:
        return
    want = max(linear, others) + max(other, reads)
    assert lanes.seconds(shares) == pytest.approx(want)


def test_a_chunk_counts_where_it_is_attended_to():
    lanes = Lanes(Flat(), HOST, Tier.CPU)
    here, away = decode(1, 500, Tier.GPU), decode(2, 7000, Tier.CPU)
    prompt = Chunk(3, 0, [0] * 100, [], Tier.CPU)  # attended to on the device
    share = Share.of([here, away, prompt], Tier.CPU)
    assert share.work.contexts == [500, 0] and share.work.prompts == [(100, 0)]
    assert share.tokens == 7000
    assert lanes.plan(Plan(0, [], [[here, away]], [])) == pytest.approx(0.017)
    assert lanes.plan(Plan(0, [], [[here], [away]], [])) == pytest.approx(0.02)
    assert lanes.plan(Plan(0, [], [[here], [prompt]], [])) == pytest.approx(0.021)
    segment = Segment([away], 1, 2, 4)  # 2.5 of 10 ms, and 1.75 of 7
    assert lanes.plan(Plan(0, [], [[here]], [], segment)) == pytest.approx(0.0125)
    assert lanes.plan(Plan(0, [], [], [], segment)) == pytest.approx(0.00425)
    assert Lanes(Flat()).plan(Plan(0, [], [[here], [away]], [])) == pytest.approx(0.02)


def test_a_host_pays_while_it_is_fast_enough():
    slow = Balance(Lanes(Flat(), Host(1e7, 1e3, 1, 0.0, 0.0), Tier.CPU))
    fast = Balance(Lanes(Flat(), HOST, Tier.CPU))
    assert fast.most([1000] * 4) >= 4 and slow.most([1000] * 4) == 0
    assert fast.chosen([1000] * 4, waiting(*[1000] * 5), 0) == {*range(5)}
    assert fast.chosen([1000] * 4, waiting(*[1000] * 3), 0) == set(), "weights are read again"
    assert slow.chosen([1000] * 4, waiting(1000, 1000), 0) == set()
    assert slow.chosen([], waiting(1000), 0) == {0}, "nobody else has work"


def test_who_was_left_out_too_often_goes_first():
    balance = Balance(Lanes(Flat(), Host(1e7, 1e3, 1, 0.0, 0.0), Tier.CPU), patience=3)
    steps = [balance.chosen([1000] * 4, waiting(1000, 1000), 0) for _ in range(8)]
    assert steps[:5] == [set(), set(), set(), {0}, {1}], "a pass of both would take too long"
    assert steps[5:] == [set(), set(), {0}]


def test_what_steps_took_counts_more_than_what_they_should_have():
    balance = Balance(Lanes(Flat(), Host(1e8, 1e3, 1, 0.0, 0.0), Tier.CPU))
    away = Plan(0, [], [[decode(1, 500, Tier.GPU)], [decode(2, 700, Tier.CPU)]], [])
    here = Plan(0, [], [[decode(1, 500, Tier.GPU)]], [])
    assert balance.most([1000] * 4)
    for _ in range(100):
        balance.landed(away, 0.06)
    assert not balance.most([1000] * 4)
    for _ in range(2000):
        balance.landed(here, 0.01)
    assert balance.most([1000] * 4), "it is tried again"


def test_a_host_that_is_slower_than_it_should_be_is_given_less():
    balance = Balance(Lanes(Flat(), Host(1e8, 1e3, 64, 0.0, 0.0), Tier.CPU))
    there = [decode(uid, 1000, Tier.CPU) for uid in range(8)]
    here, segment = [decode(9, 1000, Tier.GPU)], Segment(there, 0, 16, 64)
    assert balance.layers(here, segment) == 8
    for _ in range(200):
        balance.landed(Plan(0, [], [here], [], segment), 0.0425, host=0.04)
    assert balance.host == pytest.approx(2, rel=0.01) and balance.layers(here, segment) == 4
    assert balance.both == pytest.approx(1, abs=0.01), "the host explains all of it"


def test_steps_with_decodes_away_bound_what_the_device_takes():
    balance = Balance(Lanes(Flat(), Host(1e8, 1e3, 64, 0.0, 0.0), Tier.CPU))
    here = [decode(9, 1000, Tier.GPU)]
    for _ in range(100):
        balance.landed(Plan(0, [], [here], []), 0.03)
    assert balance.device == pytest.approx(3, rel=0.01)
    prompt = [Chunk(1, 0, [0] * 100, [], Tier.CPU)]
    for _ in range(100):
        balance.landed(Plan(0, [], [here + prompt], []), 0.09)
    assert balance.device == pytest.approx(3, rel=0.01), "what is written away takes time besides"
    segment = Segment([decode(1, 1000, Tier.CPU)], 0, 16, 64)
    for _ in range(200):
        balance.landed(Plan(0, [], [here], [], segment), 0.015)
    assert balance.device == pytest.approx(1.2, rel=0.01), "0.0125 s of the device, in 0.015"


def test_many_may_pay_where_one_does_not():
    """A second lane takes a whole device's time again, whoever is in it."""
    balance = Balance(Lanes(Flat(), HOST, Tier.CPU))
    for _ in range(200):
        balance.observe([decode(uid, 1000, Tier.GPU) for uid in range(8)])
        balance.observe([Chunk(99, 0, [0] * 2000, [], Tier.GPU)])
    assert balance.most([1000] * 8) >= 8


@pytest.mark.parametrize("every", [1, 10])
def test_the_host_pays_more_where_prompts_come_in_bursts(every):
    """Steps without prompts wait for weights alone; those that hide these have no time to spare."""

    class Knee:
        def seconds(self, work: Work) -> float:
            return max(0.01, 1e-5 * work.tokens) if work.tokens else 0.0

    balance = Balance(Lanes(Knee(), HOST, Tier.CPU))
    decodes = [decode(uid, 1000, Tier.GPU) for uid in range(8)]
    for step in range(2000):
        prompt = [] if step % every else [Chunk(99, 0, [0] * (1600 * every), [], Tier.GPU)]
        balance.observe([*decodes, *prompt])
    assert bool(balance.most([1000] * 8)) == (every > 1)
    for _ in range(20_000):
        balance.observe(decodes)
    assert balance.most([1000] * 8), "without prompts, too"


@given(st.integers(1, 40), st.integers(1, 40), st.floats(1e6, 1e10))
def test_a_pass_takes_the_plans_that_the_host_needs(here, there, rate):
    """Each plan has the layers that the host reads while the device computes, and no pass takes
    much longer than it may."""
    lanes = Lanes(Flat(), Host(rate, 1e3, 64, 0.0, 0.0), Tier.CPU)
    balance = Balance(lanes)
    beside = [decode(uid, 1000, Tier.GPU) for uid in range(here)]
    uids = balance.chosen([1000] * here, waiting(*[1000] * there), 0)
    segment = Segment([decode(uid, 1000, Tier.CPU) for uid in uids], 0, 0, 64)
    if not uids:
        assert min(there, max(1, balance.longest * 0.01 * rate / 1e6)) < here + 1
        return
    step = balance.layers(beside, segment)
    reads = len(uids) * 1000 * 1e3 / rate
    assert step == 1 or step / 64 * reads <= 0.01 * (1 + 1e-9), "nobody at home waits for the host"
    assert step == PARTS or 0.01 <= (step + 1) / 64 * reads * (1 + 1e-9)
    prompt = Chunk(99, 0, [0] * 100, [], Tier.GPU)
    assert step <= min(PARTS, balance.layers([*beside, prompt], segment)), "one in each gap"
    assert len(uids) == 1 or reads <= balance.longest * 0.01 * (1 + 1e-9)
    assert balance.layers([], segment) == 64, "nobody else has work"
