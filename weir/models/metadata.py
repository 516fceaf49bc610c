"""The shape of a model from the metadata of a GGUF file, whose names are llama.cpp's.

OPT is absent because llama.cpp does not support it.
"""

import math
from typing import Any, TypeVar

from msgspec.structs import replace

from weir.errors import ConfigError
from weir.gguf import GGUF
from weir.models.config import checked, unsupported
from weir.models.scaling import rope_spec, stretched
from weir.spec import AttentionSpec, RopeSpec, Spec

ARCHITECTURES = ("gemma3", "llama", "qwen2", "qwen3")
GEMMA3_27B = 62  # layers of the only size whose attention scale is not head_dim ** -0.5
F32 = 0

T = TypeVar("T", int, float)


def from_gguf(gguf: GGUF) -> Spec:
    """The Spec from the metadata. Raises ConfigError, which names what is missing or wrong."""
    architecture = gguf.metadata.get("general.architecture")
    if architecture not in ARCHITECTURES:
        raise unsupported(architecture, ARCHITECTURES)
    if _read(gguf, "expert_count", int, 0):
        raise ConfigError("mixture-of-experts models are not supported")
    if "token_embd.weight" not in gguf.tensors:
        raise ConfigError(f"{gguf.path} has no tensor token_embd.weight: it holds no whole model")
    gemma = architecture == "gemma3"
    hidden = _read(gguf, "embedding_length", int)
    heads = _read(gguf, "attention.head_count", int)
    head_dim = _read(gguf, "attention.key_length", int, hidden // heads)
    layers = _read(gguf, "block_count", int)
    if layers > len(gguf.tensors):
        raise ConfigError(f"{gguf.path} has {len(gguf.tensors)} tensors for {layers} layers")
    context = _read(gguf, "context_length", int)
    attention = AttentionSpec(
        heads=heads,
        kv_heads=_read(gguf, "attention.head_count_kv", int, heads),
        head_dim=head_dim,
        scale=(hidden // heads if gemma and layers == GEMMA3_27B else head_dim) ** -0.5,
    )
    window = _read(gguf, "attention.sliding_window", int, 0) or None
    windows = [window if local else None for local in _local(gguf, layers, 6 if gemma else 1)]
    far = _rope(gguf, head_dim, context)
    theta = _read(gguf, "rope.freq_base_swa", float, 10000.0 if gemma else far.theta)
    near = RopeSpec(theta=theta, scaling={"rope_type": "default"}) if gemma else far
    return checked(
        Spec(
            architecture=architecture,
            vocab=gguf.tensors["token_embd.weight"].shape[0],
            hidden=hidden,
            layers=layers,
            heads=heads,
            kv_heads=attention.kv_heads,
            head_dim=head_dim,
            ffn=_read(gguf, "feed_forward_length", int),
            context=context if gemma else stretched(context, far),
            eps=_read(gguf, "attention.layer_norm_rms_epsilon", float),
            tied="output.weight" not in gguf.tensors,
            activation="gelu_tanh" if gemma else "silu",
            attention=[replace(attention, window=w) for w in windows],
            rope=[far if w is None else near for w in windows],
            qkv_bias="blk.0.attn_q.bias" in gguf.tensors,
            out_bias="blk.0.attn_output.bias" in gguf.tensors,
            mlp_bias="blk.0.ffn_down.bias" in gguf.tensors,
            qk_norm="blk.0.attn_q_norm.weight" in gguf.tensors,
            embed_scale=math.sqrt(hidden) if gemma else 1.0,
            logit_softcap=_read(gguf, "final_logit_softcapping", float, 0.0) or None,
            bos=gguf.metadata.get("tokenizer.ggml.bos_token_id"),
            eos=_eos(gguf),
        )
    )


def _read(gguf: GGUF, key: str, kind: type[T], default: T | None = None) -> T:
    """A number of this architecture, positive or, if its default is 0, also 0. A list with a number
    per layer must hold equal ones. Raises ConfigError."""
    full = f"{gguf.metadata['general.architecture']}.{key}"
    value: Any = gguf.metadata.get(full, default)
    if isinstance(value, list) and value and all(v == value[0] for v in value):
        value = value[0]
    if isinstance(value, bool) or not isinstance(value, int if kind is int else int | float):
        raise ConfigError(
            f"{gguf.path}: metadata {full} is {value!r}, not one number for all layers"
        )
    if not 0 <= value < math.inf or (value == 0 and default != 0):
        raise ConfigError(f"{gguf.path}: metadata {full} is {value!r}, not a positive number")
    return kind(value)


def _local(gguf: GGUF, layers: int, pattern: int) -> list[bool]:
    """For each layer, whether it uses the window: by a list, or all but every `pattern`-th."""
    key = f"{gguf.metadata['general.architecture']}.attention.sliding_window_pattern"
    listed = gguf.metadata.get(key)
    if isinstance(listed, list):
        if len(listed) != layers:
            raise ConfigError(f"{gguf.path}: metadata {key} has {len(listed)} of {layers} layers")
        return [bool(local) for local in listed]
    every = _read(gguf, "attention.sliding_window_pattern", int, pattern)
    return [every == 1 or i % every < every - 1 for i in range(layers)]


def _rope(gguf: GGUF, head_dim: int, context: int) -> RopeSpec:
    parameters: dict[str, Any] = {
        "rope_theta": _read(gguf, "rope.freq_base", float, 10000.0),
        "partial_rotary_factor": _read(gguf, "rope.dimension_count", int, head_dim) / head_dim,
    }
    if "rope_freqs.weight" in gguf.tensors:  # Llama 3's scaling, as one divisor per pair
        divisors = _floats(gguf, "rope_freqs.weight")
        parameters |= {"rope_type": "longrope", "attention_factor": 1.0}
        parameters |= {"short_factor": divisors, "long_factor": divisors}
        return rope_spec(parameters, head_dim, context)
    kind = gguf.metadata.get(f"{gguf.metadata['general.architecture']}.rope.scaling.type", "none")
    if kind == "longrope":
        parameters["short_factor"] = _floats(gguf, "rope_factors_short.weight")
        parameters["long_factor"] = _floats(gguf, "rope_factors_long.weight")
        parameters["attention_factor"] = _read(gguf, "rope.scaling.attn_factor", float, 1.0)
    if kind != "none":
        trained = _read(gguf, "rope.scaling.original_context_length", int, context)
        parameters |= {"rope_type": kind, "original_max_position_embeddings": trained}
        parameters["factor"] = _read(gguf, "rope.scaling.factor", float, 1.0)
    return rope_spec(parameters, head_dim, context)


def _floats(gguf: GGUF, name: str) -> list[float]:
    if name not in gguf.tensors or gguf.tensors[name].type != F32:
        raise ConfigError(f"{gguf.path} has no float32 tensor {name}, which its rope needs")
    return [float(value) for value in gguf.data(name).cast("f")]


def _eos(gguf: GGUF) -> list[int]:
    """The tokens that end a text, a turn or a message."""
    keys = (f"tokenizer.ggml.{name}_token_id" for name in ("eos", "eot", "eom"))
    return [gguf.metadata[key] for key in keys if key in gguf.metadata]
