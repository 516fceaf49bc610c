"""A latency target: budgets that meet it, correction by what steps take, targets out of reach."""

import math
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.cost.test_roofline import COST, chunk
from weir.core import Chunk, Load, Plan, Sampling
from weir.cost.hardware import H100
from weir.cost.roofline import Roofline
from weir.cost.target import AIM, Target, best_budget
from weir.cost.work import Work
from weir.errors import ConfigError
from weir.sim.shapes import shape


def plan(decodes: int, context: int, length: int) -> Plan:
    lane = [Chunk(uid, context - 1, [], [], 0, Sampling()) for uid in range(decodes)]
    return Plan(0, [], [[*lane, chunk(10**6, 0, length)]], [])


@given(st.integers(1, 200), st.integers(1, 4000), st.integers(0, 8000))
def test_the_budget_is_the_largest_that_meets_the_target(decodes, context, start) -> None:
    target = Target(COST, 0.05, 4096)
    length = target.prompts(Load(decodes, decodes * context), start)
    contexts = [context] * decodes

    def seconds(length: int) -> float:
        return COST.seconds(Work(decodes, contexts, [(length, start)]))

    assert 16 <= length <= 4096
    if length > 16:
        assert seconds(length) <= 0.05
    if length < 4096:
        assert seconds(length + 2) > 0.05


def test_more_decodes_and_longer_contexts_leave_less() -> None:
    target = Target(COST, 0.03, 4096)
    shares = [target.prompts(Load(n, n * 4000), 0) for n in (1, 32, 64, 128)]
    assert shares == sorted(shares, reverse=True) and shares[0] > shares[-1]
    assert target.prompts(Load(32, 32_000), 0) > target.prompts(Load(32, 32_000), 30_000)
    assert target.prompts(Load(), 0) == sys.maxsize


def test_steps_that_take_longer_than_predicted_make_it_careful() -> None:
    target = Target(COST, 0.05, 4096)
    before = target.prompts(Load(32, 32_000), 0)
    step = plan(32, 1000, before)
    for _ in range(200):
        predicted = target.observe(step, 1.5 * COST.seconds(Work.of(step)))
    assert target.ratio == pytest.approx(1.5, rel=0.01)
    assert predicted == pytest.approx(1.5 * COST.seconds(Work.of(step)), rel=0.01)
    after = target.prompts(Load(32, 32_000), 0)
    assert COST.seconds(Work(32, [1000] * 32, [(after, 0)])) * 1.5 <= 0.0505
    for _ in range(300):
        target.observe(step, COST.seconds(Work.of(step)))
    assert target.prompts(Load(32, 32_000), 0) == pytest.approx(before, rel=0.03)


def test_one_step_that_hung_is_not_believed() -> None:
    target = Target(COST, 0.05, 4096)
    target.observe(plan(8, 100, 64), 60.0)
    assert target.ratio < 1.2
    target.observe(Plan(0, [], [], []), 0.1)
    assert target.ratio < 1.2


def test_prompts_go_on_under_any_load() -> None:
    assert Target(COST, 0.007, 4096).prompts(Load(256, 256 * 8000), 0) == 16


@given(st.integers(1, 400), st.integers(1, 4000), st.integers(0, 8000), st.integers(0, 10**6))
def test_one_that_gives_way_is_as_large_as_its_reasons_allow(decodes, context, start, backlog):
    """The base, twice what decodes take, or an eighth of the backlog, whichever is longest."""
    pace = Target(COST, 0.025, 4096, firm=False)
    length = pace.prompts(Load(decodes, decodes * context, backlog), start)
    alone = COST.seconds(Work(decodes, [context] * decodes))
    whole = backlog * COST.seconds(Work(0, [], [(4096, 0)])) / 4096
    allowed = max(0.025, 2 * alone, whole / 8)

    def seconds(length: int) -> float:
        return COST.seconds(Work(decodes, [context] * decodes, [(length, start)]))

    assert 16 <= length <= 4096
    assert length == 16 or seconds(length) <= allowed * 1.001
    if length < 4096:  # an eighth of a doubling is how finely backlogs are told apart
        assert seconds(length + 2) > allowed / 2 ** (1 / 8) * 0.999


def test_a_crowd_makes_steps_longer_only_where_the_target_is_not_firm() -> None:
    backlogs = [0, 1_000, 10_000, 100_000, 1_000_000]
    giving, firm = (
        [Target(COST, 0.025, 4096, firm=firm).prompts(Load(64, 64_000, n), 0) for n in backlogs]
        for firm in (False, True)
    )
    assert giving == sorted(giving) and giving[0] == giving[1] < giving[2] < giving[3] == 4096
    assert len(set(firm)) == 1 and firm[0] == giving[0]


def test_a_small_model_takes_more_prompt_beside_decodes_in_the_same_time() -> None:
    large, small = (
        Target(Roofline(shape(name), H100), 0.025, 4096, firm=False).prompts(Load(32, 32_000), 0)
        for name in ("llama-3.1-8b", "qwen3-0.6b")
    )
    assert small == 4096 and 512 < large < 1200


def test_steps_of_decodes_alone_say_nothing_of_prompts() -> None:
    """A prefix that all decodes have in common is read once, and costs less than it is priced."""
    target = Target(COST, 0.05, 4096)
    decodes = Plan(0, [], [[Chunk(uid, 4000, [], [], 0, Sampling()) for uid in range(64)]], [])
    for _ in range(100):
        target.observe(decodes, 0.3 * COST.seconds(Work.of(decodes)))
    assert (target.ratio, target.spread) == (1.0, 0.0)


def test_a_target_below_one_decode_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"one decode alone takes \d\.\d ms here; raise"):
        Target(COST, 0.002, 4096)
    assert Target(COST, 0.002, 4096, firm=False).prompts(Load(1, 100), 0) > 16


def test_without_a_target_the_budget_is_what_saturates() -> None:
    best = best_budget(COST, 8192)
    assert 256 <= best <= 2048

    def rate(length: int) -> float:
        return length / COST.seconds(Work(1, [], [(length, 0)]))

    assert rate(best) >= 0.95 * max(rate(1 << i) for i in range(4, 14))
    assert rate(best // 2) < 0.95 * max(rate(1 << i) for i in range(4, 14))


@given(
    st.integers(1, 200), st.integers(1, 4000), st.integers(1, 10**5), st.floats(0, 3), st.booleans()
)
def test_a_step_takes_no_more_prompt_than_first_tokens_need(decodes, context, backlog, waited, tbt):
    """At the rate of such steps all that wait is computed in the time that is left, and at a
    smaller one it is not; a target between tokens still bounds the step."""
    seconds = 0.05 if tbt else math.inf
    pace = Target(COST, seconds, 4096, first=2.0)
    load = Load(decodes, decodes * context, backlog, waited)
    length = pace.prompts(load, 0)
    contexts = [context] * decodes
    needed = backlog / max(AIM * 2.0 - waited, 0.25)

    def rate(length: int) -> float:
        return length / COST.seconds(Work(decodes, contexts, [(length, 0)]))

    most = Target(COST, 0.05, 4096).prompts(load, 0) if tbt else 4096
    assert 16 <= length <= most
    if length < most:
        assert rate(length + 1) >= 0.99 * needed
    if length > 16:
        assert rate(length) <= 1.12 * needed  # an eighth of a doubling


def test_first_tokens_cannot_come_sooner_than_a_prompt_takes() -> None:
    with pytest.raises(ConfigError, match="raise --target-ttft"):
        Target(COST, math.inf, 4096, first=0.001)
