"""A RopeSpec from the parameters in a `config.json` or GGUF file. No tensors."""

import math
from typing import Any

from weir.errors import ConfigError
from weir.spec import RopeSpec

NEEDED: dict[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "dynamic": ("factor",),
    "yarn": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
    "longrope": ("short_factor", "long_factor"),
}
"""Every supported type, and the parameters that it needs."""


def rope_spec(parameters: dict[str, Any], head_dim: int, context: int) -> RopeSpec:
    """A rope from its parameters, which include `rope_theta`. context: the length trained for.

    Raises ConfigError for a type that is not supported, and for a parameter that is missing or is
    not a positive number (for longrope: a list of them, one per pair).
    """
    given = {key: value for key, value in parameters.items() if value is not None}
    older_name = given.pop("type", "default")
    kind = given.pop("rope_type", older_name)
    if not isinstance(kind, str) or kind not in NEEDED:
        raise ConfigError(f"rope type {kind!r} is not supported; supported: {', '.join(NEEDED)}")
    theta = _positive("rope_theta", given.pop("rope_theta", None))
    part = _positive("partial_rotary_factor", given.pop("partial_rotary_factor", 1.0))
    rotated = int(head_dim * part)
    if not 0 < rotated <= head_dim or rotated % 2:
        raise ConfigError(f"a rope cannot rotate {rotated} of the {head_dim} values of a head")
    if kind == "default":
        given = {}
    else:
        given.setdefault("original_max_position_embeddings", context)
        _positive("original_max_position_embeddings", given["original_max_position_embeddings"])
    for name in NEEDED[kind]:
        if kind != "longrope":
            _positive(name, given.get(name))
        elif not isinstance(given.get(name), list) or len(given[name]) != rotated // 2:
            raise ConfigError(f"{name} of a rope must list {rotated // 2} numbers")
        else:
            given[name] = [_positive(name, value) for value in given[name]]
    return RopeSpec(theta, 0 if rotated == head_dim else rotated, {"rope_type": kind, **given})


def stretched(context: int, rope: RopeSpec) -> int:
    """The longest sequence; with some scalings the config gives the trained length instead."""
    kind, factor = rope.scaling["rope_type"], rope.scaling.get("factor", 1.0)
    if kind in ("linear", "dynamic"):
        return int(context * factor)
    if kind == "yarn":
        return max(context, int(rope.scaling["original_max_position_embeddings"] * factor))
    return context


def _positive(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ConfigError(f"{name} of a rope must be a number, not {value!r}")
    if not 0 < value < math.inf:
        raise ConfigError(f"{name} of a rope must be positive, not {value!r}")
    return float(value)
