"""Norms, rotary embedding and activations against plain PyTorch."""

import math

import pytest
import torch

from weir.ops import mlp, norm, rope
from weir.spec import RopeSpec

SHAPES = [(1, 8), (3, 33), (7, 576), (2, 1), (70, 640)]


def close(got: torch.Tensor, want: torch.Tensor, tolerance: float = 2e-6) -> bool:
    return bool(((got - want).abs() <= tolerance * (1 + want.abs())).all())


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("shape", SHAPES)
def test_rms_norm(shape: tuple[int, int]) -> None:
    x, w = torch.randn(shape) * 3, torch.randn(shape[1])
    want = torch.nn.functional.rms_norm(x.double(), shape[1:], w.double(), 1e-5)
    for op in (norm.rms_norm, norm.reference_rms_norm):
        assert close(op(x, w, 1e-5), want)
        assert close(op(x, w.bfloat16(), 1e-5), want, 1e-2)


@pytest.mark.parametrize("shape", SHAPES)
def test_layer_norm(shape: tuple[int, int]) -> None:
    x, w, b = torch.randn(shape) * 3 + 5, torch.randn(shape[1]), torch.randn(shape[1])
    want = torch.nn.functional.layer_norm(x.double(), shape[1:], w.double(), b.double(), 1e-5)
    for op in (norm.layer_norm, norm.reference_layer_norm):
        assert close(op(x, w, b, 1e-5), want, 1e-5)


@pytest.mark.parametrize("act", mlp.ACTIVATIONS)
@pytest.mark.parametrize("shape", SHAPES)
def test_activations(shape: tuple[int, int], act: str) -> None:
    x = torch.randn(shape[0], 2 * shape[1]) * 6
    x[0, 0], x[0, -1] = 90.0, -90.0
    want = mlp.reference_gated(x.double(), act)
    assert close(mlp.gated(x, act), want, 1e-5)
    want = mlp.reference_activate(x.double(), act)
    mlp.activate_(x, act)
    assert close(x, want, 1e-5)


def test_not_a_number_stays_one() -> None:
    x = torch.full((1, 40), math.nan)
    for act in ("silu", "gelu_tanh", "relu"):
        assert mlp.gated(x, act).isnan().all()
    assert norm.rms_norm(x, torch.ones(40), 1e-5).isnan().all()


def test_an_unknown_activation_is_named() -> None:
    with pytest.raises(ValueError, match="'swish' is unknown"):
        mlp.gated(torch.ones(1, 4), "swish")
    with pytest.raises(ValueError, match="'swish' is unknown"):
        mlp.activate_(torch.ones(1, 4), "swish")


def rotated(x: torch.Tensor, pos: torch.Tensor, theta: float, dim: int) -> torch.Tensor:
    """Each pair (i, i + dim / 2) as a complex number, turned by pos * theta^(-2i / dim)."""
    x = x.double()
    turn = torch.outer(pos.double(), theta ** -(torch.arange(0, dim, 2).double() / dim))
    pair = torch.complex(x[..., : dim // 2], x[..., dim // 2 : dim])
    pair = pair * torch.polar(torch.ones_like(turn), turn).unsqueeze(1)
    return torch.cat([pair.real, pair.imag, x[..., dim:]], dim=-1)


@pytest.mark.parametrize("pos_dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize(
    "heads, kv_heads, size, dim", [(9, 3, 64, 0), (4, 4, 80, 32), (2, 1, 6, 0)]
)
def test_rope(heads: int, kv_heads: int, size: int, dim: int, pos_dtype: torch.dtype) -> None:
    pos = torch.tensor([0, 3, 77, 5, 1], dtype=pos_dtype)
    table = rope.tables(RopeSpec(theta=1e4, dim=dim), size, 128)
    fused = torch.randn(5, heads + 2 * kv_heads, size)  # as a fused projection leaves them
    q, k, v = fused.split([heads, kv_heads, kv_heads], dim=1)
    want = [rotated(x, pos, 1e4, dim or size) for x in (q, k)] + [v.clone()]
    rope.rope_(q, k, pos, table)
    for got, expected in zip((q, k, v), want, strict=True):
        assert close(got, expected, 2e-5)


def test_rope_normalises_each_head_first() -> None:
    pos, q, k = torch.arange(6), torch.randn(6, 4, 32), torch.randn(6, 2, 32)
    q_norm, k_norm = torch.randn(32), torch.randn(32)
    table = rope.tables(RopeSpec(), 32, 6)
    want = []
    for x, weight in ((q, q_norm), (k, k_norm)):
        y = x.clone()
        flat = norm.reference_rms_norm(y.flatten(0, 1), weight, 1e-6)
        want.append(rotated(flat.view_as(y), pos, 1e4, 32))
    rope.rope_(q, k, pos, table, q_norm, k_norm, 1e-6)
    assert close(q, want[0], 2e-5) and close(k, want[1], 2e-5)


SCALINGS = [
    {"rope_type": "default"},
    {"rope_type": "linear", "factor": 4.0},
    {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 1024,
    },
    {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024},
    {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 1024,
        "mscale": 1.0,
        "mscale_all_dim": 0.7,
        "beta_fast": 16,
    },
    {
        "rope_type": "longrope",
        "factor": 4.0,
        "original_max_position_embeddings": 1024,
        "short_factor": [1.0] * 32,
        "long_factor": [1.0 + i / 8 for i in range(32)],
    },
]


@pytest.mark.parametrize("scaling", SCALINGS, ids=lambda s: s["rope_type"])
def test_scaled_frequencies_are_those_of_transformers(scaling: dict[str, object]) -> None:
    transformers = pytest.importorskip("transformers")
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    config = transformers.LlamaConfig(
        hidden_size=512,
        num_attention_heads=8,
        max_position_embeddings=4096,
        rope_parameters={"rope_theta": 10000.0, **scaling},
    )
    if scaling["rope_type"] == "default":
        want, scale = 1e4 ** -(torch.arange(0, 64, 2) / 64), 1.0
    else:
        want, scale = ROPE_INIT_FUNCTIONS[scaling["rope_type"]](config, "cpu", seq_len=4096)
    spec = RopeSpec(theta=1e4, scaling=scaling)
    got, got_scale = rope.frequencies(spec, 64, 4096)
    assert torch.allclose(got, want, rtol=1e-6, atol=0) and math.isclose(got_scale, scale)
    table = rope.tables(spec, 64, 50)
    if scaling["rope_type"] != "longrope":  # which looks at the context it is made for
        assert torch.allclose(table[49, :32], (49 * want).cos() * scale, atol=1e-6)
        assert torch.allclose(table[49, 32:], (49 * want).sin() * scale, atol=1e-6)


def test_dynamic_rope_stretches_past_the_trained_context() -> None:
    scaling = {"rope_type": "dynamic", "factor": 2.0, "original_max_position_embeddings": 512}
    plain, _ = rope.frequencies(RopeSpec(), 64, 512)
    within, _ = rope.frequencies(RopeSpec(scaling=scaling), 64, 512)
    past, _ = rope.frequencies(RopeSpec(scaling=scaling), 64, 2048)
    assert torch.equal(plain, within)
    stretched = 1e4 * (2.0 * 2048 / 512 - 1) ** (64 / 62)
    assert torch.allclose(past, stretched ** -(torch.arange(0, 64, 2) / 64), rtol=1e-6)


def test_an_unknown_rope_is_named() -> None:
    with pytest.raises(ValueError, match="'spiral' is unknown"):
        rope.tables(RopeSpec(scaling={"rope_type": "spiral"}), 64, 8)
