"""The shape of a model from its `config.json`, as transformers 4 and 5 write it.

All other code reads the `Spec` made here. No tensors, no files.
"""

import math
from collections.abc import Iterable
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct
from msgspec.structs import replace

from weir.errors import ConfigError
from weir.models.scaling import rope_spec, stretched
from weir.models.scheme import read_scheme
from weir.spec import AttentionSpec, Spec

Positive = Annotated[int, Meta(gt=0)]

ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "relu": "relu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
}
MAX_LAYERS = 10_000


class Decoder(Struct, kw_only=True):
    """The keys that every supported `config.json` has; names and defaults are transformers'."""

    vocab_size: Positive
    hidden_size: Positive
    num_hidden_layers: Annotated[int, Meta(gt=0, le=MAX_LAYERS)]
    num_attention_heads: Positive
    max_position_embeddings: Positive = 2048
    tie_word_embeddings: bool = False
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None


class Llama(Decoder, kw_only=True):
    intermediate_size: Positive
    num_key_value_heads: Positive | None = None
    head_dim: Positive | None = None
    hidden_act: str = "silu"
    rms_norm_eps: float = 1e-6
    attention_bias: bool = False
    mlp_bias: bool = False
    rope_parameters: dict[str, Any] | None = None  # since transformers 5
    rope_scaling: dict[str, Any] | None = None  # in transformers 4
    rope_theta: Annotated[float, Meta(gt=0)] = 10000.0
    partial_rotary_factor: Annotated[float, Meta(gt=0, le=1)] = 1.0
    use_sliding_window: bool = False
    sliding_window: Positive | None = None
    max_window_layers: int = 0  # layers before this one have no window
    layer_types: list[str] | None = None


class Mistral(Llama, kw_only=True):
    num_key_value_heads: Positive | None = 8
    max_position_embeddings: Positive = 131072
    use_sliding_window: bool = True
    sliding_window: Positive | None = 4096


class Qwen2(Llama, kw_only=True):
    max_position_embeddings: Positive = 32768
    sliding_window: Positive | None = 4096
    max_window_layers: int = 28


class Qwen3(Qwen2, kw_only=True):
    head_dim: Positive | None = 128


class Gemma3(Llama, kw_only=True):
    """The published files of the larger models omit values that equal these defaults."""

    vocab_size: Positive = 262208
    hidden_size: Positive = 2304
    intermediate_size: Positive = 9216
    num_hidden_layers: Annotated[int, Meta(gt=0, le=MAX_LAYERS)] = 26
    num_attention_heads: Positive = 8
    num_key_value_heads: Positive | None = 4
    head_dim: Positive | None = 256
    hidden_activation: str = "gelu_pytorch_tanh"
    max_position_embeddings: Positive = 131072
    tie_word_embeddings: bool = True
    bos_token_id: int | None = 2
    eos_token_id: int | list[int] | None = 1
    query_pre_attn_scalar: Annotated[float, Meta(gt=0)] = 256.0
    use_sliding_window: bool = True
    sliding_window: Positive | None = 4096
    sliding_window_pattern: Positive = 6
    rope_theta: Annotated[float, Meta(gt=0)] = 1000000.0
    rope_local_base_freq: Annotated[float, Meta(gt=0)] = 10000.0
    final_logit_softcapping: float | None = None
    attn_logit_softcapping: float | None = None
    use_bidirectional_attention: bool | None = False


class OPT(Decoder, kw_only=True):
    ffn_dim: Positive
    tie_word_embeddings: bool = True
    bos_token_id: int | None = 2
    eos_token_id: int | list[int] | None = 2
    activation_function: str = "relu"
    do_layer_norm_before: bool = True
    remove_final_layer_norm: bool = msgspec.field(name="_remove_final_layer_norm", default=False)
    word_embed_proj_dim: Positive | None = None
    enable_bias: bool = True
    layer_norm_elementwise_affine: bool = True


CONFIGS: dict[str, type[Decoder]] = {
    "llama": Llama,
    "mistral": Mistral,
    "qwen2": Qwen2,
    "qwen3": Qwen3,
    "gemma3": Gemma3,
    "gemma3_text": Gemma3,
    "opt": OPT,
}


def from_config(config: dict[str, Any], generation: dict[str, Any] | None = None) -> Spec:
    """The Spec of a `config.json` and, for the end-of-text ids, a `generation_config.json`.

    Raises ConfigError for an architecture, activation, rope or quantisation that is not supported,
    and for a key of the wrong type or range, which it names.
    """
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in CONFIGS:
        raise unsupported(kind, CONFIGS)
    read_scheme(config)  # only to raise its errors
    try:
        parsed = msgspec.convert(config.get("text_config") or config, CONFIGS[kind])
    except msgspec.ValidationError as error:
        raise ConfigError(f"config.json of a {kind} model: {error}") from None
    if isinstance(parsed, OPT):
        spec = _opt(parsed)
    elif isinstance(parsed, Gemma3):
        spec = _gemma3(parsed)
    else:
        assert isinstance(parsed, Llama)
        spec = _llama(kind, parsed)
    eos = (generation or {}).get("eos_token_id")
    eos = parsed.eos_token_id if eos is None else eos
    eos = eos if isinstance(eos, list) else [] if eos is None else [eos]
    return checked(replace(spec, bos=parsed.bos_token_id, eos=eos))


def _llama(architecture: str, c: Llama) -> Spec:
    """Models with RMS norms, a gated MLP and rotary positions; the base of Gemma 3, too."""
    head_dim = c.head_dim or _head_size(c)
    kv_heads = c.num_key_value_heads or c.num_attention_heads
    attention = AttentionSpec(c.num_attention_heads, kv_heads, head_dim, head_dim**-0.5)
    windowed = replace(attention, window=c.sliding_window)
    parameters = c.rope_parameters or c.rope_scaling or {}
    known = {"rope_theta": c.rope_theta, "partial_rotary_factor": c.partial_rotary_factor}
    rope = rope_spec(known | parameters, head_dim, c.max_position_embeddings)
    return Spec(
        architecture=architecture,
        vocab=c.vocab_size,
        hidden=c.hidden_size,
        layers=c.num_hidden_layers,
        heads=c.num_attention_heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        ffn=c.intermediate_size,
        context=stretched(c.max_position_embeddings, rope),
        eps=c.rms_norm_eps,
        tied=c.tie_word_embeddings,
        activation=_activation(c.hidden_act),
        attention=[windowed if local else attention for local in _local(c)],
        rope=[rope] * c.num_hidden_layers,
        qkv_bias=c.attention_bias or architecture == "qwen2",
        out_bias=c.attention_bias and architecture != "qwen2",
        mlp_bias=c.mlp_bias,
        qk_norm=architecture == "qwen3",
    )


def _gemma3(c: Gemma3) -> Spec:
    if c.use_bidirectional_attention:
        raise ConfigError("Gemma 3 with bidirectional attention (an encoder) is not supported")
    if c.layer_types is None:
        every = c.sliding_window_pattern
        c.layer_types = [
            "full_attention" if i % every == every - 1 else "sliding_attention"
            for i in range(c.num_hidden_layers)
        ]
    nested = c.rope_parameters or {}
    c.rope_parameters = nested.get("full_attention") or c.rope_scaling or {}
    spec = _llama("gemma3", c)
    near = {"rope_theta": c.rope_local_base_freq, **(nested.get("sliding_attention") or {})}
    local = rope_spec(near, spec.head_dim, c.max_position_embeddings)
    return replace(
        spec,
        context=c.max_position_embeddings,  # already stretched in the published files
        activation=_activation(c.hidden_activation),
        attention=[
            replace(a, scale=c.query_pre_attn_scalar**-0.5, softcap=c.attn_logit_softcapping)
            for a in spec.attention
        ],
        rope=[local if near else far for near, far in zip(_local(c), spec.rope, strict=True)],
        qk_norm=True,
        embed_scale=math.sqrt(c.hidden_size),
        logit_softcap=c.final_logit_softcapping,
    )


def _opt(c: OPT) -> Spec:
    if not c.layer_norm_elementwise_affine:
        raise ConfigError("OPT without layer norm weights is not supported")
    heads, head_dim = c.num_attention_heads, _head_size(c)
    embed_dim = c.word_embed_proj_dim or c.hidden_size
    return Spec(
        architecture="opt",
        vocab=c.vocab_size,
        hidden=c.hidden_size,
        layers=c.num_hidden_layers,
        heads=heads,
        kv_heads=heads,
        head_dim=head_dim,
        ffn=c.ffn_dim,
        context=c.max_position_embeddings,
        tied=c.tie_word_embeddings,
        activation=_activation(c.activation_function),
        attention=[AttentionSpec(heads, heads, head_dim, head_dim**-0.5)] * c.num_hidden_layers,
        qkv_bias=c.enable_bias,
        out_bias=c.enable_bias,
        mlp_bias=c.enable_bias,
        embed_dim=embed_dim if embed_dim != c.hidden_size else 0,
        norm_after=not c.do_layer_norm_before,
        final_norm=c.do_layer_norm_before and not c.remove_final_layer_norm,
    )


def _head_size(c: Decoder) -> int:
    if c.hidden_size % c.num_attention_heads:
        raise ConfigError(
            f"hidden size {c.hidden_size} does not divide into {c.num_attention_heads} heads"
        )
    return c.hidden_size // c.num_attention_heads


def _local(c: Llama) -> list[bool]:
    """For each layer, whether it has a sliding window."""
    if not c.use_sliding_window or c.sliding_window is None:
        return [False] * c.num_hidden_layers
    if c.layer_types is None:
        return [i >= c.max_window_layers for i in range(c.num_hidden_layers)]
    if len(c.layer_types) != c.num_hidden_layers:
        raise ConfigError(
            f"config.json names {len(c.layer_types)} layer_types for {c.num_hidden_layers} layers"
        )
    if unknown := set(c.layer_types) - {"full_attention", "sliding_attention"}:
        raise ConfigError(f"layer type {min(unknown)!r} is not supported")
    return [kind == "sliding_attention" for kind in c.layer_types]


def _activation(name: str) -> str:
    if name not in ACTIVATIONS:
        raise ConfigError(
            f"activation {name!r} is not supported; supported: {', '.join(sorted(ACTIVATIONS))}"
        )
    return ACTIVATIONS[name]


def checked(spec: Spec) -> Spec:
    """The Spec, if its numbers are consistent. Raises ConfigError."""
    ends = [*spec.eos, *([] if spec.bos is None else [spec.bos])]
    if not all(isinstance(token, int) for token in ends):
        raise ConfigError(f"the begin and end of a text must be token ids, not {ends}")
    if spec.heads % spec.kv_heads:
        raise ConfigError(f"{spec.heads} heads cannot share {spec.kv_heads} key-value heads evenly")
    return spec


def unsupported(architecture: object, known: Iterable[str]) -> ConfigError:
    return ConfigError(
        f"architecture {architecture!r} is not supported; supported: {', '.join(sorted(known))}"
    )
