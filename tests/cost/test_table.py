"""Profiles: what a table makes of measured steps, and how it is kept."""

import statistics
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.cost.test_roofline import COST
from tests.reference import Tiny
from tests.runtime.drive import runner
from weir.core import Capacity, Plan, Tier
from weir.cost import profile
from weir.cost.table import Grid, Table
from weir.cost.work import Work
from weir.errors import ConfigError
from weir.executor.local import Local
from weir.executor.sim import Sim, VirtualClock

KEY = {"model": "llama", "device": "h100"}


def executor(pages: int = 30_000, tokens: int = 2048, context: int = 8192) -> Sim:
    capacity = Capacity(16, {int(Tier.GPU): pages}, tokens, 256, context)

    def seconds(plan: Plan) -> float:
        return COST.seconds(Work.of(plan))

    return Sim(capacity, VirtualClock(), seconds, lambda uid, position: 1)


@pytest.fixture(scope="module")
def table() -> Table:
    return profile.profile(executor(), KEY, repeats=1)[0]


def test_measured_steps_come_back_exactly(table: Table) -> None:
    for length in (2, 64, 2048):
        for start in (0, 512):
            work = Work(prompts=[(length, start)])
            assert table.seconds(work) == pytest.approx(COST.seconds(work))
    for count in (1, 32, 256):
        work = Work(count, [256] * count)
        assert table.seconds(work) == pytest.approx(COST.seconds(work))


def test_steps_between_and_mixed_are_near(table: Table) -> None:
    works = list(profile.mixtures(executor().capacity, 200))
    errors = [abs(table.seconds(work) / COST.seconds(work) - 1) for work in works]
    assert statistics.median(errors) < 0.05 and max(errors) < 0.3
    assert any(work.contexts and len(work.prompts) == 2 for work in works)


def test_a_small_cache_is_filled_in(table: Table) -> None:
    small = profile.profile(executor(pages=2048), KEY, repeats=1)[0]
    work = Work(256, [4096] * 256)  # far more than fits
    assert small.seconds(work) == pytest.approx(COST.seconds(work), rel=0.15)
    assert small.decodes.rows == table.decodes.rows


def test_too_small_to_profile_is_said() -> None:
    with pytest.raises(ConfigError, match="raise"):
        profile.profile(executor(pages=1, context=64), KEY, repeats=1)


@given(st.integers(1, 5000), st.integers(0, 9000), st.integers(1, 300))
def test_no_step_is_free(length: int, start: int, count: int) -> None:
    grid = Grid([2, 64], [0, 64], [[1e-3, 2e-3], [4e-3, 9e-3]])
    table = Table(KEY, grid, Grid([1, 2], [1, 2], [[1e-3, 2e-3], [1e-3, 2e-3]]))
    assert table.seconds(Work(prompts=[(length, start)])) > 0
    assert table.seconds(Work(count, [start + 1] * count, [(length, start)])) > 0
    assert table.seconds(Work()) == 0.0


def test_a_real_engine_can_be_profiled() -> None:
    local = Local(runner(Tiny()), tokens=32, requests=8, context=128, depth=1, threads=1)
    try:
        works = list(profile.mixtures(local.capacity, 5))
        table, measured = profile.profile(local, KEY, repeats=1, others=works)
    finally:
        local.close()
    assert len(measured) == 5 and all(seconds > 0 for seconds in measured)
    assert table.prompts.rows == [2, 4, 8, 16, 32] and table.decodes.rows == [1, 2, 4, 8]


def test_kept_and_found_again(table: Table, tmp_path: Path) -> None:
    file = profile.path(tmp_path / "profiles", KEY)
    profile.save(table, file)
    assert profile.load(file, KEY) == table
    assert profile.path(tmp_path / "profiles", KEY | {"device": "a100"}) != file
    with pytest.raises(ConfigError, match="run `weir profile` again"):
        profile.load(file, KEY | {"version": "9"})
    file.write_bytes(msgspec.json.encode({"key": KEY}))
    with pytest.raises(ConfigError, match="not a profile that can be read"):
        profile.load(file)
    with pytest.raises(ConfigError, match="not a profile that can be read"):
        profile.load(tmp_path / "nowhere.json")
