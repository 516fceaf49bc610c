"""Shapes of well-known models, so that they can be simulated without their files."""

from typing import Any

from weir import hub
from weir.errors import ConfigError
from weir.models.config import from_config
from weir.models.shape import read_spec
from weir.spec import Spec


def _llama(hidden: int, layers: int, heads: int, cache: int, ffn: int, **more: Any) -> Any:
    return {
        "model_type": "llama",
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": cache,
        "intermediate_size": ffn,
        "vocab_size": 128256,
        "max_position_embeddings": 131072,
        **more,
    }


def _opt(hidden: int, layers: int, heads: int) -> Any:
    return {
        "model_type": "opt",
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "ffn_dim": 4 * hidden,
        "word_embed_proj_dim": hidden,
        "vocab_size": 50272,
        "max_position_embeddings": 2048,
    }


SHAPES: dict[str, dict[str, Any]] = {
    "llama-2-7b": _llama(4096, 32, 32, 32, 11008, vocab_size=32000, max_position_embeddings=4096),
    "llama-3.1-8b": _llama(4096, 32, 32, 8, 14336),
    "llama-3.1-70b": _llama(8192, 80, 64, 8, 28672),
    "qwen3-0.6b": _llama(
        1024,
        28,
        16,
        8,
        3072,
        model_type="qwen3",
        head_dim=128,
        vocab_size=151936,
        max_position_embeddings=40960,
        tie_word_embeddings=True,
    ),
    "qwen3-32b": _llama(
        5120,
        64,
        64,
        8,
        25600,
        model_type="qwen3",
        head_dim=128,
        vocab_size=151936,
        max_position_embeddings=40960,
    ),
    "opt-6.7b": _opt(4096, 32, 32),
    "opt-30b": _opt(7168, 48, 56),
    "opt-175b": _opt(12288, 96, 96),
}


def shape(name: str, revision: str | None = None, folder: str | None = None) -> Spec:
    """The shape of a well-known model, or of one that `weir serve` loads. Raises `ConfigError`."""
    spec: Spec
    if name in SHAPES:
        spec = from_config(SHAPES[name])
        return spec
    try:
        source = hub.resolve(name, revision, folder)
    except ConfigError as error:
        raise ConfigError(f"{error}; shapes known without files: {', '.join(SHAPES)}") from None
    spec = read_spec(source.path)
    return spec
