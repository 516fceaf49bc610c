"""Replays: the simulator plans what the real engine plans, and its report adds up."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from tests.cost.test_roofline import LLAMA
from tests.reference import Tiny
from tests.runtime.drive import runner
from weir.balance import CacheAware, LeastLoaded, RoundRobin
from weir.cli import main
from weir.config import Config
from weir.core import Capacity, Plan, Result, Tier
from weir.cost.hardware import H100, PRESETS
from weir.cost.roofline import Roofline
from weir.cost.work import Work
from weir.errors import ConfigError
from weir.executor.local import Local
from weir.sim.flags import Scene, weight_bytes
from weir.sim.fleet import attended, capacity
from weir.sim.replay import Replica, replay
from weir.sim.report import measure
from weir.sim.workload import Item, Words, Workload, poisson

MODEL = Tiny()
COST = Roofline(LLAMA, H100)


class Vocabulary:
    vocab = MODEL.spec.vocab
    special = frozenset[int]()


def work(seed: int, count: int, rate: float = 300.0) -> Workload:
    """Prompts of which half share one of two heads, at times that overlap at H100 speeds."""
    rng, words = Random(seed), Words(Vocabulary, seed)
    heads = [words.draw(20), words.draw(40)]
    items = []
    for uid in range(count):
        head = rng.choice(heads) if rng.random() < 0.5 else []
        tail = [uid % 61, uid // 61 % 61, *words.draw(rng.randrange(1, 30))]
        items.append(Item(head + tail, rng.randrange(1, 25)))
    return poisson(Workload("mixed", items), rate, 1.0, seed)


@dataclass(slots=True)
class Seen:
    """Notes the plans that another executor is given."""

    inner: object
    plans: list[Plan] = field(default_factory=list)

    def __getattr__(self, name: str) -> object:
        return getattr(self.inner, name)

    def submit(self, plan: Plan):
        self.plans.append(plan)
        return self.inner.submit(plan)


@dataclass(slots=True)
class Handles:
    real: object
    virtual: object

    def result(self) -> Result:
        self.virtual.result()  # moves the clock to when the plan lands
        return self.real.result()


@dataclass(slots=True)
class Computed:
    """The real executor's tokens at the virtual one's times."""

    real: Local
    virtual: object

    def __getattr__(self, name: str) -> object:
        return getattr(self.virtual, name)

    def submit(self, plan: Plan) -> Handles:
        return Handles(self.real.submit(plan), self.virtual.submit(plan))


def tiny(config: Config, size: Capacity) -> Replica:
    scene = Scene(config, MODEL.spec, size, COST, H100)
    made = scene.fleet()[0]
    made.engine.executor = Seen(made.engine.executor)
    return made


def shapes(plans: list[Plan]) -> list[Plan]:
    """Plans without the values of tokens: a simulation knows only how many there are."""
    blank = msgspec.structs.replace
    return [
        blank(
            plan,
            lanes=[
                [blank(chunk, ids=[0] * len(chunk.ids), sample=chunk.sample) for chunk in lane]
                for lane in plan.lanes
            ],
        )
        for plan in plans
    ]


@pytest.mark.parametrize("policy", ["fcfs", "lpm"])
@pytest.mark.parametrize(
    ("pages", "tokens", "overlap"), [(256, 64, True), (40, 16, True), (40, 32, False)]
)
def test_the_simulator_plans_what_the_engine_plans(policy, pages, tokens, overlap) -> None:
    config = Config(scheduling_policy=policy, overlap=overlap, composer="chunked")
    size = Capacity(4, {int(Tier.CPU): pages}, tokens, 16, 128)
    virtual, actual = tiny(config, size), tiny(config, size)
    local = Local(
        runner(MODEL, pages={1: pages}), tokens=tokens, requests=16, context=128, threads=1
    )
    actual.engine.executor.inner = Computed(local, actual.engine.executor.inner)
    try:
        simulated = replay(work(5, 40), [virtual])
        computed = replay(work(5, 40), [actual])
    finally:
        local.close()
    plans = shapes(virtual.engine.executor.plans)
    assert plans == shapes(actual.engine.executor.plans)
    assert simulated == computed
    assert len(plans) > 50 and max(len(lane) for plan in plans for lane in plan.lanes) > 4
    if pages == 40:
        assert actual.engine.scheduler.running.preemptions > 0


@settings(max_examples=30)
@given(st.integers(0, 10**6), st.sampled_from([1, 3]), st.sampled_from([30, 300, 3000]))
def test_a_report_adds_up(seed: int, replicas: int, rate: int) -> None:
    load = work(seed, 30, rate)
    size = Capacity(4, {int(Tier.GPU): 60}, 48, 8, 128)
    fleet = [tiny(Config(), size) for _ in range(replicas)]
    records, duration = replay(load, fleet, LeastLoaded())
    report = measure(records, duration)
    assert report.completed == len(load.items) and not report.failed
    assert [record.output_tokens for record in records] == [item.output for item in load.items]
    assert [len(record.arrivals) for record in records] == [item.output for item in load.items]
    for record in records:
        assert record.start <= record.started <= record.arrivals[0]
        assert record.arrivals == sorted(record.arrivals)
        assert record.end == record.arrivals[-1] <= duration
    assert report.preemptions == sum(made.engine.scheduler.running.preemptions for made in fleet)
    plans = [plan for made in fleet for plan in made.engine.executor.plans]
    busy = sum(COST.seconds(Work.of(plan)) for plan in plans)
    assert busy <= replicas * duration + 1e-9


def test_twice_the_same_is_the_same() -> None:
    size = Capacity(4, {int(Tier.GPU): 60}, 48, 8, 128)
    runs = [replay(work(9, 40), [tiny(Config(), size) for _ in range(2)]) for _ in range(2)]
    assert runs[0] == runs[1]


def test_a_replica_alone_is_not_disturbed_by_the_others() -> None:
    """Requests that go to one of two replicas see what they would see of one alone."""
    load = work(3, 30)
    size = Capacity(4, {int(Tier.GPU): 200}, 48, 8, 128)
    both, _ = replay(load, [tiny(Config(), size) for _ in range(2)], RoundRobin())
    for first in (0, 1):
        half = Workload("half", sorted(load.items, key=lambda item: item.arrival)[first::2])
        alone, _ = replay(half, [tiny(Config(), size)])
        assert alone == both[first::2]


def test_text_and_conversations_are_refused() -> None:
    fleet = [tiny(Config(), Capacity(4, {int(Tier.GPU): 60}, 48, 8, 128))]
    for item in (Item("text", 3), Item([1, 2], 3, turns=("more",))):
        with pytest.raises(ConfigError, match="needs prompts of tokens in single turns"):
            replay(Workload("chat", [item]), fleet)


def test_a_request_too_long_fails_alone() -> None:
    fleet = [tiny(Config(), Capacity(4, {int(Tier.GPU): 60}, 48, 8, 128))]
    items = [Item([1] * 100, 100), Item([2] * 10, 4)]
    records, duration = replay(Workload("long", items), fleet)
    assert "128" in records[0].error and not records[1].error
    assert measure(records, duration).failed == 1


def test_what_a_device_holds() -> None:
    config = Config(max_model_len=8192)
    size = capacity(config, LLAMA, H100)
    assert 390_000 < size.pages[Tier.GPU] * size.page < 440_000
    with pytest.raises(ConfigError, match="nothing is left for the KV cache"):
        capacity(config, LLAMA, msgspec.structs.replace(H100, memory=16 * 10**9))


def test_codes_leave_room_for_more() -> None:
    """Of 16 bits 8 keep 66 of 128 bytes, and 4 keep 36: on a CPU everywhere, beside a GPU below."""
    cpu = msgspec.structs.replace(H100, name="cpu")
    kinds = ("auto", "int8", "int4")
    given = {"max_model_len": 8192, "kv_cache_memory": 10**10, "block_size": 16}
    held = [capacity(Config(**given, kv_cache_dtype=k), LLAMA, cpu).pages[Tier.CPU] for k in kinds]
    assert held[1] / held[0] == pytest.approx(128 / 66, rel=1e-3)
    assert held[2] / held[0] == pytest.approx(128 / 36, rel=1e-3)
    given |= {"cpu_cache": 10**10, "disk_cache": "there", "disk_cache_size": 10**10}
    sizes = [capacity(Config(**given, kv_cache_dtype=k), LLAMA, H100).pages for k in kinds]
    assert len({size[Tier.GPU] for size in sizes}) == 1
    for tier in (Tier.CPU, Tier.DISK):
        assert sizes[2][tier] / sizes[0][tier] == pytest.approx(128 / 36, rel=1e-3)
    with pytest.raises(ConfigError, match="would keep all KV"):
        capacity(Config(kv_cache_dtype="int4"), LLAMA, H100)
    wide = capacity(Config(**given, dtype="float32"), LLAMA, H100).pages
    assert wide[Tier.GPU] == pytest.approx(sizes[0][Tier.GPU] / 2, rel=1e-3)


@pytest.mark.parametrize("size", [66 / 64, 36 / 64])
def test_codes_are_attended_to_no_slower_than_16_bits(size: float) -> None:
    alone = msgspec.structs.replace(LLAMA, heads=LLAMA.kv_heads)
    few, many = attended(alone, size, 76e9, 16), attended(LLAMA, size, 76e9, 16)
    assert size <= few <= many <= 2.0 == attended(LLAMA, 2.0, 76e9, 16)
    assert attended(LLAMA, size, 1e15, 1) == 2.0  # where unpacking is all that takes time
    assert attended(LLAMA, size, 1.0, 16) == size


def test_least_loaded_takes_turns_among_equals() -> None:
    router = LeastLoaded()
    assert [router.route([], {0: 0, 1: 0, 2: 0}) for _ in range(4)] == [0, 1, 2, 0]
    assert router.route([], {0: 3, 1: 1, 2: 2}) == 1


def test_cache_aware_keeps_prefixes_together_until_loads_drift() -> None:
    router = CacheAware(capacity=100, drift=4)
    first, second = list(range(64)), list(range(100, 164))
    homes = [router.route(first, {0: 0, 1: 0}), router.route(second, {0: 0, 1: 0})]
    assert sorted(homes) == [0, 1]
    for tail in range(5):
        assert router.route([*first, *[tail] * 16], {0: 3, 1: 3}) == homes[0]
        assert router.route([*second, *[tail] * 16], {0: 3, 1: 3}) == homes[1]
    assert router.route(first, {homes[0]: 5, homes[1]: 0}) == homes[1]


def test_a_replica_that_comes_back_comes_back_empty() -> None:
    for router in (CacheAware(capacity=100), RoundRobin(), LeastLoaded()):
        assert {router.route(range(64), {0: 0, 7: 0}) for _ in range(2)} <= {0, 7}
        assert router.route(range(64), {7: 9}) == 7
    router = CacheAware(capacity=100)
    home = router.route(range(64), {0: 0, 1: 0})
    assert router.route(range(64), {0: 9, 1: 9}) == home
    assert router.route(range(100, 132), {1 - home: 0}) == 1 - home
    assert router.route(range(64), {0: 0, 1: 0}) == home, "it has seen least"
    assert len(router.seen[home]) == 4


def test_cache_aware_forgets_what_replicas_cannot_hold() -> None:
    router = CacheAware(capacity=4, match=0.0)
    old = list(range(64))
    home = router.route(old, {0: 0, 1: 0})
    for fresh in range(1, 9):
        router.route([1000 * fresh + i for i in range(64)], {0: 0, 1: 0})
    assert all(len(seen) <= 4 for seen in router.seen.values())
    assert router._known(router._chain(old), router.seen[home]) == 0


def test_a_target_holds_and_what_it_costs_is_first_tokens() -> None:
    words = Words(Vocabulary, 1)
    items = [Item(words.draw(1500 if at % 3 else 6000), 150) for at in range(60)]
    load = poisson(Workload("long", items), 6.0, 1.0, 2)
    reports, engines = [], []
    for config in (Config(target_tbt=0.015), Config(max_prefill_beside_decode=4096)):
        fleet = [tiny(config, Capacity(16, {int(Tier.GPU): 20_000}, 4096, 256, 8192))]
        engines.append(fleet[0].engine)
        reports.append(measure(*replay(load, fleet)).metrics)
    held, free = reports
    assert held["itl"].percentile(99) < 16 < 40 < free["itl"].percentile(99)
    assert held["ttft"].median > free["ttft"].median
    stats = engines[0].stats()
    assert stats.target_seconds == 0.015
    assert stats.predicted_seconds.sum == pytest.approx(stats.step_seconds.sum)


def test_first_tokens_come_in_time_and_no_sooner_than_asked() -> None:
    words = Words(Vocabulary, 1)
    items = [Item(words.draw(1500 if at % 3 else 6000), 150) for at in range(60)]
    load = poisson(Workload("long", items), 4.0, 1.0, 2)
    reports = []
    for first in (0.0, 0.5, 2.0):
        config = Config(target_ttft=first, scheduling_policy="fcfs")
        if not first:
            config = msgspec.structs.replace(config, max_prefill_beside_decode=4096)
        fleet = [tiny(config, Capacity(16, {int(Tier.GPU): 20_000}, 4096, 256, 8192))]
        reports.append(measure(*replay(load, fleet)).metrics)
    tbt = [metrics["itl"].percentile(99) for metrics in reports]
    ttft = [metrics["ttft"].percentile(90) for metrics in reports]
    assert tbt[2] < tbt[1] < tbt[0]
    assert ttft[1] < 500 and ttft[2] < 2000 and ttft[0] < ttft[1] < ttft[2]


def test_a_simulation_counts_weights_as_they_are_quantised() -> None:
    sizes = [weight_bytes(Config(quantization=kind), LLAMA, "h100") for kind in ("fp8", "int4")]
    assert sizes == [1.0, 0.5625]


def simulated(tmp_path: Path, *words: str) -> float:
    """Requests a second, of prompts and answers of such lengths."""
    file = str(tmp_path / "result.json")
    common = ["--trace", "random", "--max-model-len", "8192", "--ranker", "none"]
    assert main(["simulate", *common, *words, "--output-json", file]) == 0
    return json.loads(Path(file).read_text())["request_throughput"]


AWAY = ["--cpu-cache", "100GiB", "--cpu-attention", "auto"]


def test_decodes_in_main_memory_go_where_nobody_else_can(tmp_path: Path) -> None:
    """One at home lacks a page, which only whoever goes before it holds; all others are left out of
    the step since it would take them longer than they are worth."""
    lengths = ["--random-input-len", "350", "--random-output-len", "45"]
    lengths += ["--random-range-ratio", "0.4", "--num-prompts", "90", "--request-rate", "1"]
    memory = ["--hardware", "t4", "--kv-cache-memory", "432MiB"]
    assert simulated(tmp_path, "llama-2-7b", *memory, *AWAY, *lengths) > 0


def test_decodes_in_main_memory_wait_for_prompts_to_hide_behind(
    tmp_path: Path, monkeypatch
) -> None:
    """A slow host, and prompts that come in bursts: beside each of these, but not between them."""
    monkeypatch.setitem(PRESETS, "a10g", replace(PRESETS["a10g"], host_rate=40e9))
    lengths = ["--random-input-len", "1000", "--random-output-len", "100"]
    lengths += ["--random-range-ratio", "0.1", "--num-prompts", "150"]
    memory = ["--hardware", "a10g", "--kv-cache-memory", "3300MiB"]
    off, on = (simulated(tmp_path, "llama-3.1-8b", *memory, *more, *lengths) for more in ([], AWAY))
    assert on > off
