"""The cache on disk under the real engine: same tokens, and prefixes outlive engines."""

import itertools
import json
import os
import random
import threading
import time
from pathlib import Path

import pytest
import torch

from tests.audit import audit
from tests.reference import Tiny, generate
from tests.runtime.drive import CPU
from weir import build
from weir.config import load as config
from weir.core import Request, Sampling, Tier
from weir.cost.fetch import Fetch
from weir.engine import Engine
from weir.errors import ConfigError
from weir.executor.local import Local
from weir.kv import snapshot
from weir.kv.cache import Cache
from weir.runtime.disk import Disk
from weir.runtime.runner import Runner
from weir.runtime.store import Store, page_bytes
from weir.sched.composer import Chunked
from weir.sched.placement import OnDemand
from weir.sched.ranking import FCFS
from weir.sched.scheduler import Scheduler

MODEL = Tiny()
PAGE, HOT, COLD = 4, 24, 200


def tiny_engine(folder: Path, depth: int = 2, middle: int = 0) -> Engine:
    """Over the pages of a few requests, and a disk for all of them; with `middle` pages of a tier
    between the two, the first one stands for a GPU's. Loading counts as free: how fast this machine
    is changes nothing."""
    spec = MODEL.spec
    disk = Disk(folder, "tiny", COLD, page_bytes(spec.attention, PAGE, torch.float32))
    home = Tier.GPU if middle else Tier.CPU
    sizes = {home: HOT, Tier.DISK: COLD} | ({Tier.CPU: middle} if middle else {})
    devices = {tier: CPU for tier in sizes if tier != Tier.DISK}
    store = Store(spec.attention, PAGE, sizes, devices, torch.float32, disk)
    runner = Runner(MODEL, store, 80, CPU, 16)
    executor = Local(runner, tokens=64, requests=16, context=80, depth=depth, threads=1)
    cache = Cache(PAGE, sizes, below=Fetch(0.0, store.loaded, {Tier.DISK: disk}))
    if disk.kept:
        snapshot.restore(cache, disk.kept)
    scheduler = Scheduler(cache, FCFS(), Chunked(), OnDemand(home), executor.capacity)
    return Engine(scheduler, executor, keeper=disk)


def run(engine: Engine, requests: list[Request]) -> dict[int, list[int]]:
    out: dict[int, list[int]] = {r.uid: [] for r in requests}
    for r in requests:
        engine.add(r)
    deadline = time.monotonic() + 60
    while engine.busy:
        assert time.monotonic() < deadline, "somebody waits for ever"
        for delta in engine.step():
            assert delta.done in (None, "length"), delta.error
            out[delta.uid] += delta.tokens
    audit(engine.scheduler.cache)
    return out


def prompts(rng: random.Random) -> list[list[int]]:
    """More than fits into memory; each of them comes up again after others."""
    heads = [[rng.randrange(61) for _ in range(rng.randrange(20, 40))] for _ in range(8)]
    return [head + [rng.randrange(61)] * 3 for head in heads] * 2


def requests(some: list[list[int]]) -> list[Request]:
    sampling = Sampling(temperature=0.0, max_tokens=6)
    return [Request(uid, list(tokens), sampling, float(uid)) for uid, tokens in enumerate(some)]


@pytest.mark.parametrize("depth", [1, 2])
def test_tokens_are_the_same_and_the_next_engine_finds_the_prefixes(tmp_path, depth):
    some = prompts(random.Random(1))
    want = {uid: generate(MODEL, tokens, 6) for uid, tokens in enumerate(some)}
    engine = tiny_engine(tmp_path, depth)
    assert run(engine, requests(some)) == want
    stats = engine.stats()
    assert stats.loaded_tokens > 0 and stats.saved_tokens > stats.loaded_tokens
    assert stats.pages_cold > 0 and 0 < stats.disk_hit_tokens <= stats.hit_tokens
    everything = sum(engine.scheduler.cache.tree.held.values())
    engine.close()

    engine = tiny_engine(tmp_path, depth)
    restored = engine.stats().pages_cold
    assert restored == everything
    asked = engine.scheduler.cache.cold(requests(some)[0])
    assert len(asked) >= (len(some[0]) - 1) // PAGE  # whole nodes
    assert run(engine, requests(some[:8])) == {uid: want[uid] for uid in range(8)}
    found, asked = engine.stats().hit_tokens, sum(len(tokens) for tokens in some[:8])
    assert found >= asked - 8 * PAGE
    engine.close()


def test_an_engine_that_was_not_closed_leaves_nothing(tmp_path):
    some = prompts(random.Random(2))
    engine = tiny_engine(tmp_path)
    run(engine, requests(some))
    engine.executor.close()
    engine.keeper.close()  # as the end of a process does: nothing is saved
    engine = tiny_engine(tmp_path)
    assert engine.stats().pages_cold == 0
    engine.close()


def test_closing_ends_what_is_in_hand(tmp_path):
    engine = tiny_engine(tmp_path)
    for r in requests(prompts(random.Random(3))):
        engine.add(r)
    for _ in range(6):
        engine.step()
    engine.close()
    engine = tiny_engine(tmp_path)
    assert engine.stats().pages_cold > 0
    engine.close()


def test_a_disk_that_fails_ends_the_engine_and_saves_nothing(tmp_path, monkeypatch, caplog):
    engine = tiny_engine(tmp_path)
    run(engine, requests(prompts(random.Random(4))[:2]))

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("weir.runtime.disk.os.pwritev", full)
    engine.close()
    assert "not saved" in caplog.text and "No space left" in caplog.text
    monkeypatch.undo()
    engine = tiny_engine(tmp_path)
    assert engine.stats().pages_cold == 0
    engine.close()


@pytest.mark.parametrize("fails", [False, True])
def test_three_tiers_change_no_token_and_victims_come_back_by_loading(tmp_path, monkeypatch, fails):
    rng = random.Random(8)
    some = prompts(rng)
    want = {uid: generate(MODEL, tokens, 24) for uid, tokens in enumerate(some)}
    engine = tiny_engine(tmp_path, middle=30)
    greedy = Sampling(temperature=0.0, max_tokens=24)
    if fails:
        real, calls = os.preadv, itertools.count()

        def broken(*arguments: object) -> int:
            if next(calls) > 3:
                raise OSError(5, "Input/output error")
            return real(*arguments)

        monkeypatch.setattr("weir.runtime.disk.os.preadv", broken)
    out = run(engine, [Request(u, list(t), greedy, float(u)) for u, t in enumerate(some)])
    assert out == want
    stats, cache = engine.stats(), engine.scheduler.cache
    assert stats.preemptions > 0 and cache.loaded[Tier.CPU] > 0
    if not fails:
        assert cache.loaded[Tier.DISK] > 0 and stats.cpu_hit_tokens + stats.disk_hit_tokens > 0
        assert stats.recomputed_tokens < 2 * PAGE * stats.preemptions  # ends of pages alone
    engine.close()


@pytest.mark.parametrize("what", ["pwritev", "preadv"])
@pytest.mark.parametrize("after", [0, 5])
def test_a_disk_that_fails_is_given_up_and_tokens_stay_the_same(
    tmp_path, monkeypatch, caplog, what, after
):
    some = prompts(random.Random(5))
    want = {uid: generate(MODEL, tokens, 6) for uid, tokens in enumerate(some)}
    engine = tiny_engine(tmp_path)
    real, calls = getattr(os, what), itertools.count()

    def fails(*arguments: object) -> int:
        if next(calls) >= after:
            raise OSError(5, "Input/output error")
        return real(*arguments)

    monkeypatch.setattr(f"weir.runtime.disk.os.{what}", fails)
    assert run(engine, requests(some)) == want
    assert caplog.text.count("Input/output error") == 1
    assert engine.keeper is None and engine.stats().pages_cold == 0
    assert run(engine, requests(some)) == want  # and goes on
    engine.close()
    monkeypatch.undo()
    engine = tiny_engine(tmp_path)
    assert engine.stats().pages_cold == 0
    engine.close()


def test_a_slow_disk_delays_only_who_waits_for_it(tmp_path, monkeypatch):
    some = prompts(random.Random(6))
    engine = tiny_engine(tmp_path)
    run(engine, requests(some[:8]))
    monkeypatch.setattr("weir.runtime.disk.STUCK", 600.0)
    real, gate = os.preadv, threading.Event()

    def slow(*arguments: object) -> int:
        gate.wait(60)
        return real(*arguments)

    monkeypatch.setattr("weir.runtime.disk.os.preadv", slow)
    while engine.keeper.pending:
        time.sleep(0.001)
    waits, other = requests([some[0], [7, 7, 7, 5, 5]])
    engine.add(waits), engine.add(other)
    ended: list[int] = []
    while not ended:
        ended += [delta.uid for delta in engine.step() if delta.done]
    assert ended == [other.uid] and not waits.running
    gate.set()
    while engine.busy:
        ended += [delta.uid for delta in engine.step() if delta.done]
    assert ended == [other.uid, waits.uid]
    assert waits.tokens[waits.prompt :] == generate(MODEL, some[0], 6)
    assert 0 < waits.loaded[Tier.DISK] <= waits.cached
    engine.close()


def test_an_aborted_request_leaves_nothing_that_was_read_for_it(tmp_path):
    some = prompts(random.Random(6))
    engine = tiny_engine(tmp_path)
    run(engine, requests(some[:8]))
    while engine.keeper.pending:
        time.sleep(0.001)
    [waits] = requests(some[:1])
    engine.add(waits)
    engine.step()
    while not engine.keeper.fetched:
        time.sleep(0.001)
    engine.abort(waits.uid)
    assert not engine.keeper.asked and not engine.keeper.fetched
    assert [delta.done for delta in engine.step()] == ["abort"]
    assert run(engine, requests(some[:1])) == {0: generate(MODEL, some[0], 6)}
    engine.close()


def test_a_disk_that_hangs_is_given_up(tmp_path, monkeypatch, caplog):
    some = prompts(random.Random(7))
    engine = tiny_engine(tmp_path)
    run(engine, requests(some[:8]))
    monkeypatch.setattr("weir.runtime.disk.STUCK", 0.2)
    real, gate = os.preadv, threading.Event()

    def hangs(*arguments: object) -> int:
        gate.wait(60)
        return real(*arguments)

    monkeypatch.setattr("weir.runtime.disk.os.preadv", hangs)
    while engine.keeper.pending:
        time.sleep(0.001)
    assert run(engine, requests(some[:1])) == {0: generate(MODEL, some[0], 6)}
    assert caplog.text.count("has not answered") == 1 and engine.keeper is None
    engine.close()
    gate.set()


def test_loading_stops_where_computing_is_faster():
    loaded = [0, 0.0]
    fetch = Fetch(100.0, lambda tier: (loaded[0], loaded[1]))
    assert fetch.worth(2)  # nothing is known
    fetch.observe(10, 0.01)  # 1 ms a token
    assert fetch.worth(2)
    loaded[:] = [1000, 0.001]  # 0.1 ms a token
    assert fetch.worth(2)
    loaded[:] = [1000, 0.1]  # 10 ms a token
    answers = [fetch.worth(2) for _ in range(130)]
    assert answers.count(True) == 2 and not answers[0]
    for _ in range(50):
        fetch.observe(10, 1.0)  # 100 ms a token: the model is slow
    assert fetch.worth(2)


SHAPE = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 1000,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "torch_dtype": "float32",
}


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_coded_pages_come_back_from_disk_as_they_were(tmp_path, kind):
    """So tokens do not depend on where a prefix was, although the type loses precision."""
    model, cache = tmp_path / "model", tmp_path / "cache"
    model.mkdir()
    heads = {"head_dim": 64, "hidden_size": 128, "num_attention_heads": 2}
    settings = {
        "model": str(model), "load_format": "dummy", "device": "cpu", "dtype": "float32",
        "threads": "1", "kv_cache_memory": "300KiB", "grammar_backend": "none",
        "kv_cache_dtype": kind,
    }  # fmt: skip
    (model / "config.json").write_text(json.dumps(SHAPE))
    kept = settings | {"disk_cache": str(cache), "disk_cache_size": "4MiB"}
    for given in (settings, kept):
        with pytest.raises(ConfigError, match="heads of 16"):
            build.engine(config(given, {}))
    (model / "config.json").write_text(json.dumps(SHAPE | heads))
    with pytest.raises(ConfigError, match="leave out --cold-kv-dtype"):
        build.engine(config(kept | {"cold_kv_dtype": "int8"}, {}))
    some = [[*range(n, n + 200)] for n in (0, 200, 400, 0)]
    answers = []
    for given in (settings, kept, kept):
        engine = build.engine(config(given, {}))
        answers.append(run(engine, requests(some)))
        engine.close()
    assert engine.info["disk_restored_tokens"] >= 600 and engine.stats().saved_tokens > 0
    assert answers[1] == answers[0] and answers[2] == answers[0]


def test_from_the_settings(tmp_path, caplog):
    model, cache = tmp_path / "model", tmp_path / "cache"
    model.mkdir()
    (model / "config.json").write_text(json.dumps(SHAPE))
    settings = {
        "model": str(model),
        "load_format": "dummy",
        "device": "cpu",
        "dtype": "float32",
        "threads": "1",
        "kv_cache_memory": "300KiB",
        "grammar_backend": "none",
    }
    some = [[*range(n, n + 200)] for n in (0, 200, 400, 0)]
    engine = build.engine(config(settings, {}))
    want = run(engine, requests(some))
    engine.close()
    kept = settings | {"disk_cache": str(cache), "disk_cache_size": "4MiB"}
    for restored in (0, 600):
        engine = build.engine(config(kept, {}))
        assert engine.info["disk_tokens"] > 1000
        assert engine.info["disk_restored_tokens"] >= restored
        with pytest.raises(ConfigError, match="in use"):
            build.engine(config(kept, {}))
        assert run(engine, requests(some)) == want
        assert engine.stats().saved_tokens > 0  # loaded or not, as is faster here
        engine.close()
    coded = kept | {"cold_kv_dtype": "int8", "disk_cache": str(tmp_path / "coded")}
    for restored in (0, 600):  # near what was kept, and in half the room and less
        engine = build.engine(config(coded, {}))
        assert engine.info["disk_tokens"] > 3 * 1000
        assert engine.info["disk_restored_tokens"] >= restored
        assert all(len(tokens) == 6 for tokens in run(engine, requests(some)).values())
        assert engine.stats().saved_tokens > 0
        engine.close()
    engine = build.engine(config(kept | {"seed": "1"}, {}))  # other weights
    assert engine.info["disk_restored_tokens"] == 0 and "another model" in caplog.text
    engine.close()
    with pytest.raises(ConfigError, match="less than one page"):
        build.engine(config(kept | {"disk_cache_size": "10"}, {}))
    with pytest.raises(ConfigError, match="--cpu-cache is for a GPU"):
        build.engine(config(settings | {"cpu_cache": "1GiB"}, {}))
    with pytest.raises(ConfigError, match="leave out"):
        config(kept | {"enable_prefix_caching": "false"}, {})
