"""The roofline against kernels measured on an H100, and the counts it is made of."""

import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from weir.core import Chunk, Plan, Sampling
from weir.cost.hardware import H100, PRESETS, find, this_gpu
from weir.cost.roofline import Roofline
from weir.cost.work import Work, activations, cache_bytes, layer_weights, weights
from weir.errors import ConfigError
from weir.spec import AttentionSpec, Spec

ATTENTION = AttentionSpec(32, 8, 128, 128**-0.5)
LLAMA = Spec(
    architecture="llama",
    vocab=128256,
    hidden=4096,
    layers=32,
    heads=32,
    kv_heads=8,
    head_dim=128,
    ffn=14336,
    context=131072,
    attention=[ATTENTION] * 32,
)
COST = Roofline(LLAMA, H100)
BARE = Roofline(LLAMA, replace(H100, layer_seconds=0.0, step_seconds=0.0))

LINEARS = {64: 175, 128: 184, 256: 210, 512: 311, 1024: 623, 2048: 1325, 4096: 2536, 8192: 5041}
"""Tokens → measured microseconds of the four linears of one layer (cuBLAS, bf16)."""
DECODES = {(32, 2048): 99, (256, 1024): 366, (64, 8192): 717}
"""(sequences, context) → measured microseconds of one layer's attention (FlashInfer)."""
PROMPTS = {(1, 2048, 0): 345, (1, 8192, 0): 547, (4, 512, 2048): 423, (1, 512, 8192): 520}
"""(chunks, length, start) → measured TFLOP/s of one layer's attention (FlashInfer, fa3)."""


def chunk(uid: int, start: int, length: int, sample: bool = False) -> Chunk:
    return Chunk(uid, start, [1] * length, [], 0, Sampling() if sample else None)


def test_sizes_of_llama_3_1_8b() -> None:
    assert weights(LLAMA) == pytest.approx(8.03e9, rel=1e-3)
    assert layer_weights(LLAMA) == 4096 * (4096 + 1024 + 1024 + 4096 + 3 * 14336)
    assert cache_bytes(LLAMA) == 128 * 1024
    assert activations(LLAMA) == 69632


def test_linears_within_a_tenth_of_the_measured() -> None:
    errors = []
    for tokens, measured in LINEARS.items():
        seconds = BARE.seconds(Work(prompts=[(tokens, 0)]))
        attention = 32 * 4 * 4096 * Work(prompts=[(tokens, 0)]).pairs(None) / H100.attention_rate
        errors.append(abs((seconds - attention) / 32 / (measured * 1e-6) - 1))
    assert max(errors) < 0.1 and statistics.median(errors) < 0.03


def test_attention_within_a_quarter_of_the_measured() -> None:
    errors = []
    for (count, context), measured in DECODES.items():
        work = Work(contexts=[context] * count)
        linears = BARE.seconds(Work(contexts=[0] * count))
        layer = (BARE.seconds(work) - linears) / 32 + H100.layer_seconds
        errors.append(abs(layer / (measured * 1e-6) - 1))
    for (count, length, start), measured in PROMPTS.items():
        work = Work(prompts=[(length, start)] * count)
        flops = 4 * 4096 * work.pairs(None)
        layer = flops / H100.attention_rate + H100.layer_seconds
        errors.append(abs(layer / (flops / (measured * 1e12)) - 1))
    assert max(errors) < 0.3 and statistics.median(errors) < 0.15


def test_a_plan_is_counted_once_and_decodes_are_chunks_of_one() -> None:
    decode = Chunk(3, 99, [], [], 0, Sampling())
    plan = Plan(0, [], [[chunk(1, 0, 64), decode], [chunk(2, 128, 32, sample=True)]], [])
    work = Work.of(plan)
    assert work.contexts == [100]
    assert work.prompts == [(64, 0), (32, 128)]
    assert work.rows == 2
    assert work.tokens == plan.tokens == 97


@given(st.integers(1, 300), st.integers(0, 300), st.integers(1, 200))
def test_pairs_are_those_of_the_mask(length: int, start: int, window: int) -> None:
    seen = [min(position + 1, window) for position in range(start, start + length)]
    work = Work(prompts=[(length, start)])
    assert work.pairs(window) == sum(seen)
    assert work.pairs(None) == sum(range(start + 1, start + length + 1))


def test_windowed_layers_read_less() -> None:
    near = windowed(1024)
    work = Work(contexts=[8192] * 8)
    assert work.read(1024) == 8 * 1024
    assert Roofline(near, H100).seconds(work) < COST.seconds(work)
    assert Roofline(near, H100).seconds(Work(contexts=[512])) == COST.seconds(Work(contexts=[512]))


def windowed(window: int) -> Spec:
    return replace(LLAMA, attention=[replace(ATTENTION, window=window)] * 32)


@given(
    st.lists(st.integers(1, 4000), max_size=40),
    st.lists(st.tuples(st.integers(2, 512), st.integers(0, 4000)), max_size=4),
    st.integers(1, 4000),
)
def test_more_work_never_costs_less(contexts, prompts, extra) -> None:
    rows = len(contexts)
    less = COST.seconds(Work(rows, contexts, prompts))
    assert COST.seconds(Work(rows + 1, [*contexts, extra], prompts)) > less
    assert COST.seconds(Work(rows, contexts, [*prompts, (extra, 7)])) > less


def test_faster_devices_are_faster_and_nothing_costs_nothing() -> None:
    work = Work(rows=8, contexts=[1000] * 8, prompts=[(512, 0)])
    seconds = [Roofline(LLAMA, find(name)).seconds(work) for name in PRESETS]
    assert seconds == sorted(seconds, reverse=True)
    assert COST.seconds(Work()) == 0.0


def test_this_cpu_is_measured() -> None:
    cpu = find("cpu")
    assert 1e9 < cpu.weight_rate < 1e12 and 1e9 < cpu.matrix_rate < 1e14


def test_unknown_hardware_is_named_with_what_there_is() -> None:
    with pytest.raises(ConfigError, match=r"no hardware 'h900'; there are t4, .*h100.* and cpu"):
        find("h900")


def test_a_gpu_with_the_rates_of_an_h100_is_one() -> None:
    same = this_gpu(H100.memory, 3.03e12, 792e12)
    twice = this_gpu(H100.memory, 6.06e12, 1584e12)
    for name in ("weight_rate", "matrix_rate", "cache_rate"):
        assert getattr(same, name) == pytest.approx(getattr(H100, name))
        assert getattr(twice, name) == pytest.approx(2 * getattr(H100, name))
    assert same.attention_rate == pytest.approx(H100.attention_rate, rel=0.02)
