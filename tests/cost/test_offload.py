"""Offloading: the linear program against brute force, its limits, and what the paper measured."""

import itertools
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from weir.cost import search as planner
from weir.cost.machine import ENDLESS, MACHINES, T4, Machine, at, disk_rates, find
from weir.cost.offload import BYTES, Costs, Job, Offload, predict
from weir.cost.search import ANYWHERE, CPU, DISK, GPU, Planned, fastest, naive, runnable, search
from weir.cost.work import cache_bytes
from weir.errors import ConfigError
from weir.spec import AttentionSpec, Spec


def spec(hidden: int = 1024, layers: int = 8, heads: int = 16, kv_heads: int = 16) -> Spec:
    dim = hidden // heads
    return Spec(
        architecture="opt" if heads == kv_heads else "llama",
        vocab=50272,
        hidden=hidden,
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=dim,
        ffn=4 * hidden,
        context=2048,
        tied=True,
        attention=[AttentionSpec(heads, kv_heads, dim, dim**-0.5)] * layers,
    )


OPT_30B = spec(7168, 48, 56, 56)
BASE = Offload(batch=4, batches=2, weights=CPU, cache=CPU, hidden=CPU)
FREE = replace(BASE, lanes=20, weights=ANYWHERE, cache=ANYWHERE, hidden=ANYWHERE)
SMALL = replace(T4, gpu_memory=600 * 10**6, cpu_memory=400 * 10**6, disk=10**12)

machines = st.builds(
    lambda gpu, cpu, disk, link, codes: replace(
        T4,
        gpu_memory=int(gpu * 1e9),
        cpu_memory=int(cpu * 1e9),
        disk=int(disk * 1e9),
        to_gpu=link * 1e9,
        cpu_codes=codes,
    ),
    st.floats(0.2, 3),
    st.floats(0.05, 3),
    st.floats(0, 5),
    st.floats(1, 60),
    st.sampled_from([ENDLESS, 5e9]),
)
choices = st.builds(
    lambda batch, batches, together, there, weights, cache, overlap: replace(
        FREE,
        batch=batch,
        batches=batches,
        lanes=batches if together else 1,
        cpu_attention=there,
        weight_bits=weights,
        cache_bits=cache,
        overlap=overlap,
    ),
    st.sampled_from([1, 4, 16]),
    st.sampled_from([1, 3, 8]),
    st.booleans(),
    st.booleans(),
    st.sampled_from([4, 16]),
    st.sampled_from([4, 16]),
    st.sampled_from(["none", "copies", "lanes"]),
)
shapes = st.sampled_from([spec(), spec(kv_heads=4)])
JOB = Job(prompt=128, output=16)
IN_TURN = Job(prompt=128, output=16, requests=500)


def solve(costs: Costs) -> Planned | None:
    program = fastest(costs)
    return None if program is None else program.nearest()


@settings(max_examples=60, deadline=None)
@given(shapes, machines, choices)
def test_what_is_found_fits_and_adds_up(model: Spec, machine: Machine, choice: Offload) -> None:
    found = solve(Costs(model, JOB, machine, choice))
    if found is None:
        return
    offload = found.offload
    for shares in (offload.weights, offload.cache, offload.hidden):
        assert sum(shares) == pytest.approx(1, abs=1e-6) and min(shares) >= 0
    rooms = {"GPU memory": machine.gpu_memory, "CPU memory": machine.cpu_memory}
    for name, room in (rooms | {"disk": machine.disk}).items():
        assert found.predicted.memory[name] <= room * 0.9 * (1 + 1e-5)
    assert found.predicted.fits
    assert predict(model, JOB, machine, offload) == found.predicted


def test_what_costs_nothing_lies_near_the_gpu() -> None:
    """Copies that hide behind computing take no time, so only room speaks for another place."""
    small = spec(512, 4, 8, 8)
    for room, cpu in ((10**10, 10**10), (10**8, 10**10), (10**8, 10**7)):
        machine = replace(T4, gpu_memory=room, cpu_memory=cpu, disk=10**12, to_gpu=1e15)
        machine = replace(machine, disk_read=1e15, both_ways=1e15, cpu_read=1e15, to_cpu=1e15)
        found = solve(Costs(small, JOB, machine, replace(FREE, cache=GPU, hidden=GPU)))
        assert found is not None
        (gpu, there, disk), used = found.offload.weights, found.predicted.memory
        assert gpu == 1 or used["GPU memory"] == pytest.approx(0.9 * room, rel=1e-6)
        assert disk == 0 or used["CPU memory"] == pytest.approx(0.9 * cpu, rel=1e-6)
        assert (there > 0, disk > 0) == (gpu < 1, cpu < 10**8)


@settings(max_examples=30, deadline=None)
@given(
    shapes,
    machines,
    choices,
    st.sampled_from(["gpu_memory", "cpu_memory", "disk", "to_gpu", "disk_read", "cpu_cache"]),
)
def test_more_of_anything_is_never_slower(
    model: Spec, machine: Machine, choice: Offload, what: str
) -> None:
    more = replace(machine, **{what: 2 * getattr(machine, what)})
    before, after = (solve(Costs(model, JOB, one, choice)) for one in (machine, more))
    if before is not None:
        assert after is not None
        assert after.predicted.throughput >= before.predicted.throughput * (1 - 1e-6)


@pytest.mark.parametrize("job", [JOB, IN_TURN])
@pytest.mark.parametrize("there", [True, False])
@pytest.mark.parametrize("kv_heads", [16, 4])
def test_no_placement_of_a_grid_beats_the_linear_program(
    there: bool, kv_heads: int, job: Job
) -> None:
    """And the best of the grid comes as near as steps of a twentieth can."""
    model = spec(kv_heads=kv_heads)
    choice = replace(FREE, batch=16, batches=4, cpu_attention=there)
    costs = Costs(model, job, SMALL, choice)
    found = solve(costs)
    assert found is not None
    steps = np.linspace(0, 1, 21)
    splits = [(g, c, 1 - g - c) for g, c in itertools.product(steps, steps) if g + c < 1.001]
    grid = np.array([[*w, *k, *h, 1] for w in splits for k in splits for h in (GPU, CPU, DISK)])
    fits = np.ones(len(grid), bool)
    for peaks, room in costs.memory.values():
        for peak in peaks:
            fits &= grid @ peak <= room
    phases = [
        np.max([grid @ part for part in phase.values()], axis=0)
        for phase in (costs.prompt, costs.decode, costs.mixed)
    ]
    best = (np.dot(costs.counts, phases) * model.layers)[fits].min()
    planned = costs.requests * job.output / found.predicted.throughput
    assert fits.sum() > 100
    assert planned <= best * (1 + 1e-6)
    assert best <= planned * 1.15


def test_sizes_are_those_of_the_model() -> None:
    costs = Costs(spec(kv_heads=4), JOB, T4, BASE)
    assert costs.kv == 2 * 2 * 4 * 64  # keys and values, 2 bytes, 4 heads of 64
    assert costs.layer == 2 * (2 * 1024 * 1024 + 2 * 1024 * 256 + 3 * 1024 * 4096)
    codes = Costs(spec(), JOB, T4, replace(BASE, weight_bits=4, cache_bits=4))
    plain = Costs(spec(), JOB, T4, BASE)
    assert plain.layer / codes.layer == plain.kv / codes.kv == pytest.approx(3.56, abs=0.01)
    bytes_ = Costs(spec(), JOB, T4, replace(BASE, cache_bits=8))
    assert plain.kv / bytes_.kv == pytest.approx(1.94, abs=0.01)


def test_a_gpu_keeps_sixteen_bits_of_kv() -> None:
    """So codes change nothing there; they do where the CPU stands for it."""
    here = replace(BASE, batch=16, cache=GPU, weights=GPU, cpu_attention=False)
    for alone in (False, True):
        wide, codes = (
            predict(spec(), JOB, replace(T4, alone=alone), replace(here, cache_bits=bits))
            for bits in (16, 4)
        )
        assert (codes == wide) == (not alone)
        assert max(codes.memory.values()) <= max(wide.memory.values())


def test_attention_on_the_cpu_saves_the_copies_of_the_cache() -> None:
    """With a slow link the KV had better stay; with an endless one it had better travel."""
    offload = replace(BASE, batch=16, batches=4)
    for link, stays in ((1e9, True), (1e13, False)):
        machine = replace(T4, to_gpu=link)
        there, here = (
            predict(spec(), JOB, machine, replace(offload, cpu_attention=way)).throughput
            for way in (True, False)
        )
        assert (there > here) == stays


def test_the_placement_of_flexgen_costs_about_what_the_paper_measured() -> None:
    shares = (0.2, 0.8, 0.0)
    offload = Offload(batch=48, batches=3, weights=shares, cache=CPU, hidden=CPU)
    job = Job(prompt=512, output=32)
    said = predict(OPT_30B, job, T4, offload)
    assert said.throughput == pytest.approx(7.32, rel=0.2)
    apart = predict(OPT_30B, job, T4, replace(offload, overlap="none"))
    assert apart.throughput == pytest.approx(5.86, rel=0.05)
    best = search(OPT_30B, job, T4, [FREE])
    assert best.predicted.throughput >= said.throughput
    hands = naive(OPT_30B, job, T4, offload)
    assert len(hands) == 4
    assert all(hand.predicted.fits for hand in hands)
    assert all(hand.predicted.throughput <= best.predicted.throughput for hand in hands)


@pytest.mark.parametrize(
    "model, machine, bits, job",
    [
        (spec(), SMALL, 16, JOB),
        (spec(kv_heads=4), replace(SMALL, disk=0), 4, Job(prompt=512, output=512)),
        (spec(2048, 16), replace(MACHINES["h200"], gpu_memory=2**30), 16, JOB),
        (OPT_30B, replace(MACHINES["h200"], gpu_memory=16 * 2**30), 4, JOB),
        (OPT_30B, replace(MACHINES["h200"], gpu_memory=16 * 2**30), 4, IN_TURN),
        (OPT_30B, replace(MACHINES["h100"], alone=True), 16, JOB),
    ],
)
def test_bounds_exclude_only_what_is_slower(model, machine, bits, job, monkeypatch) -> None:
    """The same placement as where every choice is placed, which a bound of infinity asks for."""
    bases = runnable(machine, weight_bits=bits, cache_bits=bits)
    bases += [replace(base, weights=ANYWHERE, cache=ANYWHERE, hidden=ANYWHERE) for base in bases]
    monkeypatch.setattr(planner, "SIZES", (1, 4, 12, 32, 96))
    monkeypatch.setattr(planner, "BATCHES", (1, 3, 8, 20))
    found = search(model, job, machine, bases)
    monkeypatch.setattr(planner, "SLACK", np.inf)
    assert found == search(model, job, machine, bases)


def test_a_bound_covers_a_tier_that_was_allowed_and_is_not_used() -> None:
    """With all KV on the GPU, the CPU's answers that the program allows for are not waited for."""
    machine = MACHINES["h200"]
    _, _, both = runnable(machine)
    program = fastest(Costs(spec(), JOB, machine, both))
    assert program is not None
    found = program.nearest()
    assert found.offload.cache == GPU
    least = program.unit * (program.weight @ program.values) * 8
    assert JOB.output * found.offload.block / least < found.predicted.throughput <= program.bound


def test_kv_of_some_requests_on_the_gpu_pays_where_computing_limits() -> None:
    """Where weights are small and the CPU attends to all KV, both memories had better be read."""
    machine = replace(MACHINES["h200"], gpu_memory=16 * 2**30, disk=0)
    gpu, cpu, both = (
        search(OPT_30B, JOB, machine, [base]) for base in runnable(machine, weight_bits=4)
    )
    assert both.predicted.throughput > 1.05 * max(p.predicted.throughput for p in (gpu, cpu))
    assert min(both.offload.cache[:2]) > 0 and both.offload.cache[2] == 0
    assert gpu.offload.cache == GPU and cpu.offload.cache == CPU
    assert search(OPT_30B, JOB, machine, runnable(machine, weight_bits=4)) == both


def test_lanes_that_share_weights_pay_where_these_are_slow_to_come() -> None:
    """For prompts in small batches: as fast as one batch, with its activations alone in memory."""
    small = replace(BASE, batch=1, batches=12, hidden=GPU, weights=DISK)
    alone, shared, whole = (
        predict(OPT_30B, JOB, MACHINES["h200"], replace(small, **sizes))
        for sizes in ({}, {"lanes": 12}, {"batch": 12, "batches": 1})
    )
    assert alone.prefill == pytest.approx(12 * shared.prefill)
    assert shared.prefill == pytest.approx(whole.prefill)
    assert alone.decode == shared.decode == whole.decode
    assert alone.memory["GPU memory"] < shared.memory["GPU memory"] < whole.memory["GPU memory"]


@pytest.mark.parametrize("batches, output", [(1, 4), (3, 8), (8, 8), (12, 5), (4, 1)])
def test_steps_of_a_job_are_those_of_requests_in_turn(batches: int, output: int) -> None:
    """Each step begins the next batch if a block has room for it, and every request ends after as
    many steps as it has tokens."""
    placed, blocks = replace(BASE, batch=2, batches=batches), 3
    left, running, kinds = 2 * batches * blocks, [], []
    while left or running:
        running = [one - 1 for one in running if one > 1]
        new = min(2, left, 2 * batches - len(running))
        left, running = left - new, running + [output] * new
        if running:
            kinds.append((new > 0, len(running) > new))
    job = Job(output=output, requests=2 * batches * blocks)
    costs = Costs(OPT_30B, job, T4, placed)
    prompts, decodes, mixed = costs.counts
    assert len(kinds) == prompts * costs.steps + decodes + mixed
    assert sum(new for new, _ in kinds) == costs.steps * blocks


def test_prompts_beside_decodes_pay() -> None:
    """They share one copy of the weights, and the CPU attends while the GPU computes them."""
    machine = replace(MACHINES["h200"], gpu_memory=16 * 2**30, disk=0)
    block, stream = (
        search(OPT_30B, job, machine, runnable(machine, weight_bits=4, cache_bits=4))
        for job in (Job(), Job(requests=10**6))
    )
    assert stream.predicted.throughput > 1.2 * block.predicted.throughput
    assert stream.offload.batches > block.offload.batches
    costs = Costs(OPT_30B, Job(requests=1), machine, stream.offload)
    both = ("copies to the GPU", "disk reads")
    for name in both:
        assert costs.mixed[name][:3] * costs.steps == pytest.approx(costs.prompt[name][:3])
    slow = predict(OPT_30B, Job(requests=10**6), machine, block.offload)
    assert slow.throughput < stream.predicted.throughput


def test_latency_is_one_request() -> None:
    one = search(OPT_30B, JOB, MACHINES["h100"], [FREE], "latency")
    many = search(OPT_30B, JOB, MACHINES["h100"], [FREE])
    assert one.offload.block == 1
    assert one.predicted.prefill + one.predicted.decode < (
        many.predicted.prefill + many.predicted.decode
    )
    assert one.predicted.throughput < many.predicted.throughput


def test_what_cannot_be_planned_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = replace(T4, gpu_memory=10**8, cpu_memory=10**8, disk=0)
    with pytest.raises(ConfigError, match="a request of 144 tokens"):
        search(OPT_30B, JOB, tiny, [FREE])
    with pytest.raises(ConfigError, match="no machine"):
        find("abacus")
    monkeypatch.setitem(sys.modules, "highspy", None)
    with pytest.raises(ConfigError, match=r"weir-llm\[plan\]"):
        search(spec(), JOB, T4, [FREE])


def test_steps_that_were_timed_take_the_place_of_rates() -> None:
    """Linears by rows, in lanes; what is not in the layers once a step; weights as they are."""
    layer, rest = ((1, 0.001), (5, 0.003), (10, 0.004)), ((1, 0.01), (3, 0.02))
    bound = {"to_gpu": ENDLESS, "prompt_attention": ENDLESS, "gpu_cache": ENDLESS}
    machine = replace(T4, alone=True, layer=layer, rest=rest, layer_bytes=1e6, **bound)
    assert [round(at(layer, rows), 6) for rows in (1, 3, 5, 10, 20)] == [
        *(0.001, 0.002, 0.003, 0.004, 0.008)
    ]
    here = replace(BASE, batch=3, batches=4, lanes=2, weights=GPU, cache=GPU, hidden=GPU)
    model, job = spec(layers=8), Job(prompt=5, output=3)
    said = predict(model, job, machine, here)
    one = 4 * at(layer, 15)  # batches, each a lane of three prompts
    assert said.prefill == pytest.approx(8 * one + 2 * at(rest, 6))
    assert said.decode == pytest.approx((job.output - 1) * (8 * at(layer, 12) + at(rest, 12)))
    away = Costs(model, job, replace(machine, disk_read=1e8), replace(here, weights=DISK))
    assert (away.decode["disk reads"] @ away.choice.shares) == pytest.approx(1e6 / 1e8)


def test_disk_rates_leave_nothing_behind(tmp_path) -> None:
    read, write = disk_rates(tmp_path, 2**23)
    assert read > 0 and write > 0 and not list(tmp_path.iterdir())
    with pytest.raises(ConfigError, match="cannot be measured"):
        disk_rates(tmp_path / "missing", 2**23)


@pytest.mark.parametrize("bits", [16, 4])
def test_what_a_gpu_writes_to_its_host_takes_its_time(bits: int) -> None:
    job, placed = Job(), replace(BASE, hidden=GPU, cache_bits=bits)
    slow = replace(MACHINES["h200"], cache_to_cpu=1e8)
    said = predict(OPT_30B, job, slow, placed)
    assert said.prompt_limit == "copies to the CPU"
    size = cache_bytes(OPT_30B, BYTES[bits])
    assert said.prefill == pytest.approx(size * placed.block * job.prompt / 1e8)
    at_home = predict(OPT_30B, job, slow, replace(placed, cache=GPU))
    assert at_home.prompt_limit != "copies to the CPU"


def test_small_kernels_take_what_their_bytes_take() -> None:
    machine, placed = MACHINES["h200"], replace(BASE, hidden=GPU, cache=GPU, weights=GPU)
    free = predict(OPT_30B, Job(), replace(machine, vectors=0.0), placed)
    said = predict(OPT_30B, Job(), machine, placed)
    moved = machine.vectors * 2 * OPT_30B.hidden * OPT_30B.layers * placed.block * Job().prompt
    assert said.prefill - free.prefill == pytest.approx(moved / machine.gpu_weights)


def test_a_cpu_that_attends_answers_after_a_moment() -> None:
    """A hundred microseconds a layer, beside what attention takes."""
    fast = replace(MACHINES["h200"], to_gpu=1e30, to_cpu=1e30, both_ways=1e30, cpu_read=1e30)
    fast = replace(fast, cpu_cache=1e30, gpu_cache=1e30)
    here, away = (
        predict(OPT_30B, Job(), fast, replace(BASE, hidden=GPU, cache=cache))
        for cache in (GPU, CPU)
    )
    assert away.decode - here.decode == pytest.approx(1e-4 * OPT_30B.layers * 31)
