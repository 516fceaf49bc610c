"""`--offload` on the whole engine: the tokens of a model that lies in one place."""

import json
import logging
import sys
from pathlib import Path

import msgspec
import pytest
import torch
from msgspec.structs import replace

from tests.shadow import Shadow
from weir import build, offload, policies
from weir.config import Config, load
from weir.core import Capacity, Request, Sampling, Tier
from weir.cost.machine import MACHINES, Machine
from weir.cost.offload import BYTES, Costs, Job, predict
from weir.cost.search import Planned, Report, runnable, search
from weir.cost.work import cache_bytes, weights
from weir.device import Platform, homed
from weir.engine import Engine
from weir.errors import ConfigError
from weir.executor.sim import VirtualClock
from weir.ops import native
from weir.sched.composer import Beside
from weir.sim.shapes import SHAPES, shape

MODEL = "smollm2-135m"
CPU = torch.device("cpu")
GB = 10**9
PROMPTS = [[504, 3575, 282, 4649, 314], [*range(1000, 1700, 7)], [*range(300, 340)] * 3]
DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    ),
]
OPT = shape("opt-30b")
STREAM = Job(requests=offload.ENDLESS)
H100 = replace(MACHINES["h100"], gpu_memory=16 * GB)


def plan(folder: Path, weights, **more) -> str:
    """A file with such shares of weights, as `weir plan --json` would write it."""
    base = replace(runnable(H100)[0], batches=1, lanes=1, weights=weights)
    placed = replace(base, **more)
    predicted = predict(OPT, Job(), H100, placed)
    planned = Planned(name="planned", offload=placed, predicted=predicted)
    file = folder / "plan.json"
    file.write_bytes(
        msgspec.json.encode(Report(model="opt-30b", machine=H100, job=Job(), planned=planned))
    )
    return str(file)


def settings(**given: object) -> Config:
    return load({"model": MODEL, "dtype": "float32", "kv_cache_dtype": "float32"} | given, {})


def model(device: str, folder: Path) -> dict[str, object]:
    """A real one on a CPU, random numbers on a GPU."""
    return {"device": device} if device == "cpu" else {"device": device} | random_model(folder)


def random_model(folder: Path) -> dict[str, object]:
    small = SHAPES["llama-2-7b"] | {"hidden_size": 256, "intermediate_size": 512}
    small |= {"num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 5}
    (folder / "config.json").write_text(json.dumps(small))
    return {"model": str(folder), "load_format": "dummy"}


def generate(**given: object) -> list[list[int]]:
    engine = build.engine(settings(**({"kv_cache_memory": "64MiB"} | given)))
    try:
        for uid, prompt in enumerate(PROMPTS):
            engine.add(Request(uid, list(prompt), Sampling(temperature=0.0, max_tokens=10), uid))
        tokens: list[list[int]] = [[] for _ in PROMPTS]
        while engine.busy:
            for delta in engine.step():
                tokens[delta.uid] += delta.tokens
                assert delta.done in (None, "length", "stop"), delta
        return tokens
    finally:
        engine.close()


@pytest.fixture
def untimed(monkeypatch):
    """Plans priced by plain rates: what a model's layers take is timed in tests/test_trial.py."""
    monkeypatch.setattr(offload, "timed", lambda machine, *_: machine)


@pytest.mark.usefixtures("untimed")
@pytest.mark.parametrize("device", DEVICES)
def test_tokens_are_those_of_a_model_in_one_place(tmp_path, device):
    made, folder = model(device, tmp_path), tmp_path / "weights"
    whole = generate(**made)
    file = plan(tmp_path, (0.3, 0.2, 0.5))
    lanes = {"max_lane_tokens": 24}  # the prompts have 135 tokens
    assert generate(**made, offload=file, offload_dir=str(folder), **lanes) == whole
    assert folder.is_dir() and not list(folder.iterdir())
    if device == "cuda":
        file = plan(tmp_path, (0.5, 0.5, 0.0), cache=(0.0, 1.0, 0.0), cpu_attention=True)
        assert generate(**made, offload=file) == whole
        file = plan(tmp_path, (0.5, 0.5, 0.0), cache=(0.5, 0.5, 0.0), cpu_attention=True)
        assert generate(**made, offload=file, kv_cache_memory="1MiB", **lanes) == whole
        for share in (0.0, 0.5):
            cache = {"cache": (share, 1 - share, 0.0), "cpu_attention": True, "cache_bits": 8}
            file = plan(tmp_path, (0.5, 0.5, 0.0), **cache)
            found = generate(**made, offload=file, kv_cache_dtype="auto")
            assert [tokens[0] for tokens in found] == [tokens[0] for tokens in whole]
            assert [*map(len, found)] == [*map(len, whole)]


@pytest.mark.parametrize("device", DEVICES)
def test_quantised_weights_travel_as_they_are(tmp_path, device):
    # on a GPU the number of rows decides how products in bfloat16 are rounded, and how many run
    # in a step is the plan's to say
    dtype = "bfloat16" if device == "cpu" else "float32"
    made = random_model(tmp_path) | {"device": device, "quantization": "int4", "dtype": dtype}
    file = plan(tmp_path, (0.3, 0.2, 0.5))
    whole = generate(**made)
    assert generate(**made, offload=file, offload_dir=str(tmp_path / "weights")) == whole


@pytest.mark.parametrize("device", DEVICES)
def test_a_model_that_fits_is_left_alone(tmp_path, device):
    given = random_model(tmp_path)
    config, there = settings(offload="auto", **given), torch.device(device)
    placed = offload.arrange(config, tmp_path, there, torch.float32)
    assert placed.layer_store is None and placed.config == config
    assert offload.arrange(settings(**given), tmp_path, CPU, torch.float32).layer_store is None


def test_a_cpu_keeps_in_memory_what_it_may(tmp_path):
    given = {"offload": "auto", "cpu_memory": "100MiB", "offload_dir": str(tmp_path)}
    path = build.hub.resolve(MODEL, None, None).path
    placed = offload.arrange(settings(**given), path, CPU, torch.float32)
    assert placed.about == "weights 19% in main memory, 81% on disk"
    with pytest.raises(ConfigError, match="--offload-dir"):
        generate(device="cpu", offload="auto", cpu_memory="100MiB")


@pytest.mark.usefixtures("untimed")
def test_a_cpu_runs_a_plan_as_a_gpu_would(tmp_path, monkeypatch):
    def measured(one: Machine, folder: Path | None) -> Machine:
        return replace(one, disk=GB if folder else 0, disk_read=1e9)

    monkeypatch.setattr(offload, "measured", measured)
    path = build.hub.resolve(MODEL, None, None).path
    file = plan(tmp_path, (0.2, 0.3, 0.5), batch=4, batches=2, lanes=2)
    given = settings(offload=file, offload_dir=str(tmp_path), cpu_memory="4GiB")
    placed = offload.arrange(given, path, CPU, torch.float32)
    config = placed.config
    assert (config.max_num_seqs, config.max_num_batched_tokens) == (8, 8 * 512)
    assert (
        config.max_lane_tokens == 4 * 512 and placed.layer_store is not None and not placed.hosted
    )
    said = "weights 50% in main memory, weights 50% on disk, KV 100% in main memory; 8 requests, "
    assert placed.about.startswith(said)
    with pytest.raises(ConfigError, match="weights on disk: add --offload-dir"):
        offload.arrange(settings(offload=file), path, CPU, torch.float32)
    small = settings(offload=file, offload_dir=str(tmp_path), cpu_memory="200MiB")
    with pytest.raises(ConfigError, match=r"does not fit: it needs .* GB of main memory"):
        offload.arrange(small, path, CPU, torch.float32)


def on_gpu(monkeypatch, machine: Machine, **given: object) -> offload.Placed:
    """What is arranged for OPT-30B on another machine's GPU."""
    monkeypatch.setattr(offload.rates, "room", lambda *_: machine.gpu_memory)
    monkeypatch.setattr(offload, "this_machine", lambda *_: machine)
    monkeypatch.setattr(offload, "read_spec", lambda _: OPT)
    return offload.arrange(settings(**given), Path(), torch.device("cuda"), torch.bfloat16)


def test_weights_count_as_they_are_stored(tmp_path):
    spec = shape("opt-6.7b")
    for bits, said in ((4.5, 4), (8.5, 8), (16, 16), (32, 16)):
        with open(tmp_path / "model.safetensors", "wb") as file:
            file.truncate(int(weights(spec) * bits / 8))
        assert offload.weight_bits(settings(dtype="auto"), tmp_path, spec, torch.bfloat16) == said
    for more, said in ((("quantization", "fp8"), 8), (("load_format", "dummy"), 32)):
        assert offload.weight_bits(settings(**dict([more])), tmp_path, spec, torch.float32) == said


def test_a_gpu_gets_the_best_plan_and_steps_to_match(monkeypatch):
    placed = on_gpu(monkeypatch, H100, offload="auto")
    bases = runnable(H100, native.library() is not None)
    best = search(OPT, STREAM, H100, bases).offload
    config = placed.config
    assert placed.layer_store is not None and "waiting for" in placed.about
    assert placed.hosted == (native.library() is not None)
    assert config.max_num_seqs == best.block
    tokens = best.batch * best.lanes * 512
    beside = best.block if best.lanes < best.batches else 0
    assert config.max_num_batched_tokens == tokens + beside
    assert config.max_prefill_beside_decode == tokens
    assert config.max_lane_tokens == best.batch * 512
    assert config.enforce_eager
    kept = on_gpu(monkeypatch, H100, offload="auto", max_num_seqs=3, max_num_batched_tokens=64)
    assert (kept.config.max_num_seqs, kept.config.max_num_batched_tokens) == (3, 64)


def test_mixed_kv_becomes_two_tiers_and_lanes_one_step(monkeypatch, tmp_path):
    share = {
        "cache": (0.25, 0.75, 0.0),
        "cpu_attention": True,
        "batch": 2,
        "batches": 8,
        "lanes": 8,
    }
    file = plan(tmp_path, (0.05, 0.95, 0.0), **share)
    if native.library() is None:
        with pytest.raises(ConfigError, match="kernels"):
            on_gpu(monkeypatch, H100, offload=file)
        return
    placed = on_gpu(monkeypatch, H100, offload=file)
    config, token = placed.config, cache_bytes(OPT, 2)
    assert not placed.hosted and config.cpu_attention == "all" and config.max_num_seqs == 16
    assert (config.max_num_batched_tokens, config.max_lane_tokens) == (16 * 512, 2 * 512)
    held = token * (512 + 32 + offload.PAGE)
    assert config.kv_cache_memory == int(4 * held) and config.cpu_cache == int(13 * held)
    assert "KV 25% on the GPU, KV 75% in main memory" in placed.about
    for setting, said in (("memory_policy", "on-demand"), ("cpu_cache", "leave out --cpu-cache")):
        given = {setting: "reserve" if setting == "memory_policy" else "1GiB"}
        with pytest.raises(ConfigError, match=said):
            on_gpu(monkeypatch, H100, offload=file, **given)


@pytest.mark.skipif(native.library() is None, reason=native.status())
@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_kv_in_main_memory_may_be_codes(monkeypatch, tmp_path, share):
    """As the plan says, or a flag in its place; room is for codes there, and for none on a GPU."""
    sizes = {"batch": 8, "cache": (share, 1 - share, 0.0), "cpu_attention": share < 1}
    large = replace(H100, gpu_memory=200 * GB)
    file = plan(tmp_path, (0.1, 0.9, 0.0), cache_bits=4, **sizes)
    for flag, kind, bits in (("auto", "int4", 4), ("int8", "int8", 8), ("float32", "float32", 16)):
        placed = on_gpu(monkeypatch, large, offload=file, kv_cache_dtype=flag)
        config, held = placed.config, 512 + 32 + offload.PAGE
        wide, cold = (int(held * cache_bytes(OPT, size)) for size in (2, BYTES[bits]))
        if share == 1:
            kind = flag if bits == 16 else "auto"
            assert (config.cpu_cache, config.kv_cache_memory) == (0, 0)
        elif share == 0:
            assert placed.hosted and config.kv_cache_memory == pytest.approx(8 * cold, abs=8)
        else:
            assert config.kv_cache_memory == pytest.approx(2 * wide, abs=8)
            assert config.cpu_cache == pytest.approx(7 * cold, abs=8)
        assert config.kv_cache_dtype == kind
        assert (f"in {bits} bits" in placed.about) == (bits < 16 and share < 1)


@pytest.mark.skipif(native.library() is None, reason=native.status())
def test_the_best_plan_with_codes_is_run_with_them(monkeypatch):
    machine = replace(MACHINES["h200"], gpu_memory=16 * 2**30, disk=0)
    placed = on_gpu(monkeypatch, machine, offload="auto", kv_cache_dtype="int4")
    bases = runnable(machine, cache_bits=4)
    best, wide = (search(OPT, STREAM, machine, some) for some in (bases, runnable(machine)))
    assert best.predicted.throughput > 1.2 * wide.predicted.throughput
    assert placed.config.kv_cache_dtype == "int4" and "in 4 bits" in placed.about
    assert placed.config.max_num_seqs == best.offload.block > wide.offload.block


def test_a_gpu_that_keeps_all_kv_takes_no_codes():
    gpu = Platform(torch.device("cuda"), Tier.GPU, 1, False, torch.bfloat16, *[torch.bfloat16] * 2)
    codes = settings(kv_cache_dtype="int8")
    with pytest.raises(ConfigError, match="keep all KV: add --cpu-cache"):
        homed(gpu, codes, hosted=False)
    hosted = homed(gpu, codes, hosted=True)
    assert (hosted.tier, hosted.kv_dtype, hosted.cold) == (Tier.CPU, torch.int8, torch.int8)
    below = homed(gpu, settings(kv_cache_dtype="int8", cpu_cache="1GiB"), hosted=False)
    assert (below.tier, below.kv_dtype, below.cold) == (Tier.GPU, torch.bfloat16, torch.int8)


def shadowed(config: Config, share: float, count: int) -> tuple[Engine, Shadow]:
    """An engine that only counts, as `config` asks, with so many requests of 512 + 32 tokens.
    share: of KV on the GPU, 0 where all is in main memory."""
    page = 16 * cache_bytes(OPT, 2)
    sizes = {0: int(config.kv_cache_memory // page) - 1, 1: int(config.cpu_cache // page) - 1}
    sizes = sizes if share else {1: sizes[0]}
    tokens, lane = config.max_num_batched_tokens, config.max_lane_tokens
    capacity = Capacity(16, sizes, tokens, config.max_num_seqs, 2048, lane=lane)
    beside = Beside(config.max_prefill_beside_decode)
    scheduler = policies.scheduler(config, capacity, beside, hosted=not share)
    executor = Shadow(capacity)
    engine = Engine(scheduler, executor, VirtualClock())
    for uid in range(count):
        prompt = [1 + uid % 40, 1 + uid // 40, *range(1, 511)]
        executor.requests[uid] = prompt
        engine.add(Request(uid, prompt, Sampling(max_tokens=32), float(uid)))
    return engine, executor


@pytest.mark.skipif(native.library() is None, reason=native.status())
@pytest.mark.parametrize(("batches", "share"), [(8, 0.25), (8, 0.3)])
def test_requests_lie_where_the_plan_says(monkeypatch, tmp_path, batches, share):
    """As the scheduler places them, nobody moved or evicted."""
    cache = (share, 1 - share, 0.0)
    lanes = {"batch": 2, "batches": batches, "lanes": 8, "cache": cache, "cpu_attention": True}
    host = replace(H100, gpu_memory=200 * GB, cpu_memory=900 * GB)
    file = plan(tmp_path, (0.1, 0.9, 0.0), **lanes)
    config = on_gpu(monkeypatch, host, offload=file).config
    block = 2 * batches
    engine, executor = shadowed(config, share, block)
    while engine.busy:
        engine.step()
    chunks = [chunk for one in executor.plans for part in one.lanes for chunk in part]
    homes = {chunk.uid: chunk.home for chunk in chunks}
    assert engine.scheduler.running.preemptions == 0 and not any(
        one.moves for one in executor.plans
    )
    assert list(homes.values()).count(0) == int(share * block)
    assert {len(one.lanes) for one in executor.plans[: batches // 8]} == {8}


@pytest.mark.skipif(native.library() is None, reason=native.status())
@pytest.mark.parametrize(("share", "more"), [(0.0, 1.0), (0.25, 1.05)])
def test_requests_replace_each_other_as_predicted(monkeypatch, tmp_path, share, more):
    """In so many steps, or a few `more` where requests move to the GPU when others end; prompts
    and decodes in main memory are lanes of their own."""
    sizes = {"batch": 2, "batches": 16, "cache": (share, 1 - share, 0.0), "cpu_attention": True}
    host = replace(H100, gpu_memory=200 * GB, cpu_memory=900 * GB)
    config = on_gpu(monkeypatch, host, offload=plan(tmp_path, (0.1, 0.9, 0.0), **sizes)).config
    engine, executor = shadowed(config, share, 96)
    while engine.busy:
        engine.step()
    placed = replace(runnable(H100)[0], lanes=1, **{k: sizes[k] for k in ("batch", "batches")})
    costs = Costs(OPT, Job(requests=96), host, placed)
    prompts, decodes, mixed = costs.counts
    plans = [one for one in executor.plans if one.lanes]
    expected = prompts * costs.steps + decodes + mixed
    assert expected <= len(plans) <= more * expected
    for one in plans:
        for lane in one.lanes:
            hosted = {chunk.length == 1 and chunk.home == 1 for chunk in lane}
            assert len(hosted) == 1
    assert max(len(lane) for one in plans for lane in one.lanes) <= 32


def test_a_plan_that_does_harm_is_priced(monkeypatch, tmp_path, caplog):
    slow = plan(tmp_path, (0.0, 1.0, 0.0), batch=1)
    with caplog.at_level(logging.WARNING):
        on_gpu(monkeypatch, H100, offload=slow)
    (said,) = [record.getMessage() for record in caplog.records]
    assert said.startswith("this plan is predicted to give 0.") and "the best one " in said


def test_a_plan_given_needs_no_solver(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "highspy", None)
    placed = on_gpu(monkeypatch, H100, offload=plan(tmp_path, (0.0, 1.0, 0.0), batch=8))
    assert placed.config.max_num_seqs == 8 and placed.layer_store is not None
    with pytest.raises(ConfigError, match="HiGHS"):
        on_gpu(monkeypatch, H100, offload="auto")


@pytest.mark.parametrize(
    ("weights", "more", "said"),
    [
        ((0.9, 0.1, 0.0), {}, r"does not fit: it needs 5\d\.\d GB of GPU memory, where 14\.4"),
        ((0.1, 0.9, 0.0), {"hidden": (0.5, 0.5, 0.0)}, "plan again"),
        ((0.1, 0.9, 0.0), {"cache": (0.5, 0.0, 0.5)}, "there in 16, 8 or 4 bits"),
    ],
)
def test_a_plan_that_cannot_be_run_is_one_sentence(monkeypatch, tmp_path, weights, more, said):
    with pytest.raises(ConfigError, match=said):
        on_gpu(monkeypatch, H100, offload=plan(tmp_path, weights, **more))


def test_a_file_that_is_no_plan_is_one_sentence(tmp_path):
    for content, said in ((None, "cannot be read: No such file"), ("{}", "weir plan --json")):
        file = tmp_path / "plan.json"
        if content is not None:
            file.write_text(content)
        with pytest.raises(ConfigError, match=said):
            offload.arrange(settings(offload=str(file)), tmp_path, CPU, torch.float32)
