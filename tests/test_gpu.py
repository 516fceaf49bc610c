"""The whole engine on a GPU: the tokens of the CPU engine, whatever the chunks, pages and batch."""

import json
import random
from pathlib import Path

import msgspec
import pytest
import torch

from tests.embedded import find
from tests.runtime.drive import CPU, Drive
from weir import build
from weir.config import load as config
from weir.core import Delta, Move, Page, Request, Sampling, Score
from weir.models.load import load
from weir.ops.coded import BYTES, decode, encode
from weir.runtime import pinned
from weir.runtime.graphs import Graphs
from weir.runtime.pinned import host_zeros
from weir.runtime.runner import Runner
from weir.runtime.store import Store
from weir.spec import AttentionSpec

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
CUDA = torch.device("cuda", 0) if torch.cuda.is_available() else CPU
PROMPTS = [[504, 3575, 282, 4649, 314], [*range(1000, 1700, 7)], [*range(300, 320)] * 10, [42]]
PROMPTS += [[*range(2000, 2000 + 13 * n, 3)] for n in range(1, 9)]
LENGTH = 24
LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}
TINY = LLAMA | {
    "vocab_size": 1000,
    "hidden_size": 128,
    "intermediate_size": 352,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 512,
}


@pytest.fixture
def folder(tmp_path: Path):
    def write(shape: dict[str, object]) -> str:
        (tmp_path / "config.json").write_text(json.dumps(shape))
        return str(tmp_path)

    return write


@pytest.fixture(scope="module")
def smollm() -> str:
    return str(find())


def generate(
    prompts: list[list[int]], length: int = LENGTH, sampling: Sampling | None = None, **settings
) -> tuple[list[list[int]], list[Delta]]:
    """The tokens of each prompt from an engine of these settings, and their last deltas."""
    settings = {"device": "cuda", "dtype": "float32", "kv_cache_memory": "2GiB"} | settings
    engine = build.engine(config(settings, {}))
    sampling = sampling or Sampling(temperature=0.0, max_tokens=length)
    try:
        for uid, prompt in enumerate(prompts):
            engine.add(Request(uid, list(prompt), sampling, arrival=float(uid)))
        tokens: list[list[int]] = [[] for _ in prompts]
        ends: dict[int, Delta] = {}
        while engine.busy:
            for delta in engine.step():
                tokens[delta.uid] += delta.tokens
                if delta.done:
                    assert delta.done == "length", delta
                    ends[delta.uid] = delta
        assert engine.stats().pages_used == 0
        return tokens, [ends[uid] for uid in range(len(prompts))]
    finally:
        engine.close()
        torch.cuda.empty_cache()


@pytest.fixture(scope="module")
def expected(smollm: str) -> list[list[int]]:
    return generate(PROMPTS, model=smollm, device="cpu")[0]


@pytest.mark.parametrize("chunk", [16, 100, 4096])
@pytest.mark.parametrize("overlap", [False, True])
def test_greedy_tokens_are_those_of_the_cpu(smollm, expected, chunk, overlap) -> None:
    got, _ = generate(PROMPTS, model=smollm, max_num_batched_tokens=chunk, overlap=overlap)
    assert got == expected


@pytest.mark.parametrize("page", [1, 8, 64])
def test_any_page_size_gives_the_same_tokens(smollm, expected, page) -> None:
    assert generate(PROMPTS, model=smollm, block_size=page)[0] == expected


def test_one_at_a_time_gives_the_same_tokens(smollm, expected) -> None:
    got, _ = generate(PROMPTS, model=smollm, max_num_seqs=1, enable_prefix_caching=False)
    assert got == expected


def test_preempted_requests_give_the_same_tokens(smollm) -> None:
    prompts = [[*range(50 * n, 50 * n + 40)] for n in range(1, 11)]
    want, _ = generate(prompts, 90, model=smollm)
    got, ends = generate(prompts, 90, model=smollm, kv_cache_memory=room(smollm, 650))
    assert got == want
    assert any(delta.preempted for delta in ends)


def room(model: str, tokens: int) -> int:
    """Bytes of the KV of so many tokens."""
    given = {"model": model, "device": "cuda", "dtype": "float32", "kv_cache_memory": 2**30}
    engine = build.engine(config(given, {}))
    engine.close()
    return 2**30 * tokens // engine.info["kv_tokens"]


@pytest.mark.parametrize("attention", ["auto", "all"])
@pytest.mark.parametrize("overlap", [False, True])
def test_decodes_attended_to_in_main_memory_give_the_same_tokens(
    smollm, attention, overlap
) -> None:
    prompts = [[*range(50 * n, 50 * n + 40)] for n in range(1, 11)]
    want, _ = generate(prompts, 90, model=smollm)
    given = {"kv_cache_memory": room(smollm, 650), "cpu_cache": room(smollm, 4000)}
    memory = given | {"cpu_attention": attention}
    got, ends = generate(prompts, 90, model=smollm, overlap=overlap, **memory)
    assert got == want
    assert attention == "auto" or not any(delta.preempted for delta in ends[:2])


@pytest.mark.parametrize(("kind", "same"), [("int8", 0.5), ("int4", 0.1)])
def test_decodes_over_codes_in_main_memory_are_near(smollm, kind, same) -> None:
    """As near as they are on a CPU; first tokens are exact, as prompts meet their own keys."""
    prompts = [[*range(50 * n, 50 * n + 40)] for n in range(1, 11)]
    want, _ = generate(prompts, 30, model=smollm)
    memory = {"kv_cache_memory": "2MiB", "cpu_cache": "200MiB", "cpu_attention": "all"}
    got, _ = generate(prompts, 30, model=smollm, **memory, kv_cache_dtype=kind)
    assert [tokens[0] for tokens in got] == [tokens[0] for tokens in want]
    equal = [a == b for x, y in zip(got, want, strict=True) for a, b in zip(x, y, strict=True)]
    assert sum(equal) >= same * len(equal), sum(equal) / len(equal)


def test_bfloat16_agrees_with_float32_for_a_while(smollm, expected) -> None:
    """Rounding to 8 bits flips a close choice now and then, and all that follows it."""
    got, _ = generate(PROMPTS, model=smollm, dtype="bfloat16")
    same = [a[0] == b[0] for a, b in zip(got, expected, strict=True)]
    assert sum(same) >= 0.8 * len(same)


def test_a_seed_decides_whatever_else_is_in_the_batch(smollm) -> None:
    sampling = Sampling(temperature=0.8, top_p=0.9, seed=7, max_tokens=LENGTH)
    together, _ = generate(PROMPTS[:4], sampling=sampling, model=smollm)
    alone = [generate([p], sampling=sampling, model=smollm)[0][0] for p in PROMPTS[:4]]
    assert together == alone


def test_the_shape_of_llama_8b_loads_and_generates(folder) -> None:
    if torch.cuda.mem_get_info()[0] < 24 * 2**30:
        pytest.skip("needs 24 GiB of GPU memory")
    prompts = [[*range(n, n + 900)] for n in range(1, 6)]
    settings = {"model": folder(LLAMA), "load_format": "dummy", "dtype": "bfloat16"}
    got, _ = generate(prompts, 16, **settings)
    assert all(len(tokens) == 16 for tokens in got)
    assert all(0 <= token < LLAMA["vocab_size"] for tokens in got for token in tokens)
    assert len({tuple(tokens) for tokens in got}) > 1


@pytest.mark.parametrize("sampling", [Sampling(temperature=0.0), Sampling(seed=3)])
def test_graphs_and_overlap_change_no_token(folder, sampling) -> None:
    """In float32, whatever the lanes are padded to."""
    sampling = msgspec.structs.replace(sampling, max_tokens=40)
    prompts = [[*range(n, n + 7 * n % 90 + 1)] for n in range(1, 12)]
    settings = {"model": folder(TINY), "load_format": "dummy", "sampling": sampling}
    want, _ = generate(prompts, **settings, enforce_eager=True, overlap=False)
    for more in (
        {},
        {"overlap": False},
        {"cuda_graph_sizes": [3, 16]},
        {"max_num_batched_tokens": 16, "max_num_seqs": 5},
        {"enforce_eager": True},
    ):
        assert generate(prompts, **settings, **more)[0] == want
    assert len({tuple(tokens) for tokens in want}) > 6


def test_many_steps_leave_no_memory_behind(folder) -> None:
    """Requests come and go for 10,000 steps; what PyTorch holds is what it held after the first."""
    settings = {"model": folder(TINY), "load_format": "dummy", "device": "cuda"}
    engine = build.engine(config(settings | {"kv_cache_memory": "64MiB"}, {}))
    pick, held = random.Random(0), 0
    try:
        for step in range(10_000):
            if len(engine.scheduler.live) < 12:
                prompt = pick.choices(range(1000), k=pick.randrange(1, 60))
                sampling = Sampling(seed=step, max_tokens=pick.randrange(1, 60))
                if step % 5 == 0:
                    sampling = msgspec.structs.replace(sampling, top_k=5, repetition_penalty=1.2)
                engine.add(Request(step, prompt, sampling, arrival=float(step)))
            engine.step()
            if step == 1000:
                held = torch.cuda.memory_reserved(), torch.cuda.memory_allocated() // 2**20
        assert (torch.cuda.memory_reserved(), torch.cuda.memory_allocated() // 2**20) == held
        assert len(engine.executor.runner.stage.buffers) <= 4
    finally:
        engine.close()


WISHES = [
    Sampling(temperature=0.0),
    Sampling(seed=1, logprobs=3),
    Sampling(seed=2, top_p=0.8),
    Sampling(seed=3, top_k=9, min_p=0.01, logit_bias={4: 2.0}),
    Sampling(seed=4, repetition_penalty=1.7, frequency_penalty=0.5),
    Sampling(seed=5, allowed=[1, 2, 3], stops=[2], min_tokens=9),
]


@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
def test_a_step_never_waits_for_the_device(folder) -> None:
    """PyTorch raises where a call would wait; the result is then waited for once."""
    model = load(folder(TINY), format="dummy", dtype=torch.bfloat16, device=CUDA)
    sizes = {0: 64, 1: 64}
    store = Store(model.spec.attention, 4, sizes, {0: CUDA, 1: CPU}, torch.bfloat16)
    drive = Drive(Runner(model, store, 64, CUDA, graphs=Graphs([8])))
    drive.run.record()
    texts = [[uid + 1, 5, 9, 33, 7, 2 * uid] for uid in range(len(WISHES))]
    for start, end in ((0, 4), (4, 6), (6, 0), (7, 0)):
        chunks = [
            drive.chunk(
                uid,
                start,
                texts[uid][start:end],
                sample=wish if end != 4 else None,
                prompt=6,
                history=[] if wish.penalised and start == 0 else None,
                score=Score(0, texts[uid][1:4], 2) if end == 4 and uid == 1 else None,
                mask=b"\xff" * 125 if uid == 0 and end != 4 else None,
            )
            for uid, wish in enumerate(WISHES)
        ]
        there = [Move(Page(0, 60), Page(1, n)) for n in range(20)]
        back = [Move(Page(1, n), Page(0, 59 - n)) for n in range(3)]
        moves = [Move(Page(0, 60), Page(0, 61)), *there, *back] if start else []
        plan = drive.plan(chunks, moves=moves)
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            landing = drive.run.launch(plan)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        result = landing.result()
        assert not result.failed
        assert len(result.tokens) == (0 if end == 4 else len(WISHES))


def test_pages_keep_their_content_between_gpu_and_cpu() -> None:
    """Beside a GPU that is late, and writes pages as soon as their content has been moved."""
    layers = [AttentionSpec(4, 2, 8, scale=1.0), AttentionSpec(4, 1, 16, scale=1.0)]
    sizes = {0: 40, 1: 60}
    places = [Page(tier, index) for tier, size in sizes.items() for index in range(size)]
    generator = torch.Generator().manual_seed(0)
    store = Store(layers, 4, sizes, {0: CUDA, 1: CPU}, torch.float32)
    assert store.link is not None
    want = {place: float(n) for n, place in enumerate(places)}
    for place, mark in want.items():
        for kv in store.kv[place.tier]:
            kv[place.index] = mark
    torch.cuda.synchronize()
    for step in range(100, 160):
        picks = torch.randint(len(places), (25, 2), generator=generator).tolist()
        moves = [Move(places[a], places[b]) for a, b in picks]
        if step % 2:
            moves.sort()  # long stretches in one direction
        torch.cuda._sleep(200_000)
        store.move(moves)
        for src, dst in moves:
            want[dst] = want[src]
        for index in range(step % 7, 40, 7):
            want[Page(0, index)] = float(step)
            for kv in store.kv[0]:
                kv[index] = float(step)
    store.settle(range(60))
    for place, mark in want.items():
        assert all((kv[place.index] == mark).all() for kv in store.kv[place.tier])


@pytest.mark.parametrize("kind", BYTES)
def test_pages_become_codes_on_their_way_to_main_memory(kind) -> None:
    """Those of the definition, and what they say on their way back; while the GPU is at work."""
    layers = [AttentionSpec(4, 2, 64, scale=1.0), AttentionSpec(4, 1, 128, scale=1.0)]
    store = Store(layers, 16, {0: 40, 1: 60}, {0: CUDA, 1: CPU}, torch.bfloat16, cold=kind)
    assert store.link is not None
    first = [torch.randn(kv[:40].shape).bfloat16() for kv in store.kv[0]]
    for kv, x in zip(store.kv[0], first, strict=True):
        kv[:40] = x.to(CUDA)
    torch.cuda._sleep(2_000_000)
    store.move([Move(Page(0, n), Page(1, 59 - n)) for n in range(40)])
    for kv in store.kv[0]:
        kv.zero_()
    store.move([Move(Page(1, 59 - n), Page(0, 39 - n)) for n in range(40)])
    store.settle(range(60))
    for home, away, x in zip(*store.kv.values(), first, strict=True):
        codes = encode(x, kind)
        assert torch.equal(away[20:60].flip(0), codes)
        assert torch.equal(home[:40].cpu().flip(0), decode(codes, kind, torch.bfloat16))


def test_memory_that_the_driver_will_not_lock_is_used_unlocked(monkeypatch, caplog) -> None:
    held = host_zeros(1 << 22, pinned=True)
    assert held.is_pinned()
    monkeypatch.setattr(pinned, "READABLE_BY_ALL", 1 << 30)  # no such flag: refused
    plain = host_zeros(1 << 22, pinned=True)
    assert not plain.is_pinned() and "could not be locked" in caplog.text
    layers = [AttentionSpec(4, 2, 8, scale=1.0)]
    store = Store(layers, 4, {0: 8, 1: 8}, {0: CUDA, 1: CPU}, torch.float32)
    assert store.link is None
    store.kv[0][0][3] = 5.0
    store.move([Move(Page(0, 3), Page(1, 2)), Move(Page(1, 2), Page(0, 7))])
    assert (store.kv[1][0][2] == 5.0).all() and (store.kv[0][0][7] == 5.0).all()


@pytest.mark.parametrize("overlap", [False, True])
def test_prefixes_come_back_from_main_memory_and_disk(folder, tmp_path, overlap) -> None:
    heads = [[*range(90 * n, 90 * n + 200)] for n in range(1, 9)]
    prompts = [head + [n] * 3 for n in range(3) for head in heads]
    small = {"model": folder(TINY), "load_format": "dummy", "kv_cache_memory": "1MiB"}
    small |= {"overlap": overlap, "max_num_seqs": 4}
    want, _ = generate(prompts, 12, **small, enable_prefix_caching=False)
    disk = {"disk_cache": str(tmp_path / "disk"), "disk_cache_size": "20MiB"}
    for more in ({"cpu_cache": "20MiB"}, {"cpu_cache": "1MiB"} | disk, disk):
        assert generate(prompts, 12, **small, **more)[0] == want, more
