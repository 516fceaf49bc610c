"""How a folder's weights are quantised, from the `quantization_config` of its `config.json`.

No tensors, no files: `weir.models.packed` reads the weights.
"""

from typing import Any, Literal

import msgspec
from msgspec import Struct

from weir.errors import ConfigError


class Scheme(Struct, frozen=True):
    """method: the format. zero_step: to add to GPTQ's stored zeros."""

    method: Literal["awq", "gptq", "fp8", "compressed-tensors"]
    zero_step: int = 0


class Numbers(Struct):
    strategy: str | None = None


class Group(Struct):
    weights: Numbers | None = None


class Found(Struct):
    """Keys of the `quantization_config` that Weir reads."""

    quant_method: str
    bits: int = 4
    version: str = "gemm"  # of AWQ
    desc_act: bool = False  # of GPTQ
    checkpoint_format: str = "gptq"
    weight_block_size: list[int] | None = None  # of fp8
    format: str | None = None  # of compressed-tensors
    config_groups: dict[str, Group] | None = None


def read_scheme(config: dict[str, Any]) -> Scheme | None:
    """The scheme; None if weights are not quantised. Raises ConfigError if it is not supported."""
    value = config.get("quantization_config")
    if not value:
        return None
    try:
        found = msgspec.convert(value, Found)
    except msgspec.ValidationError as error:
        raise ConfigError(f"quantization_config: {error}") from None
    match found.quant_method:
        case "awq":
            _require("bits", found.bits, 4)
            _require("version", found.version, "gemm")
            return Scheme("awq")
        case "gptq":
            _require("bits", found.bits, 4)
            _require("desc_act", found.desc_act, False)
            _require("checkpoint_format", found.checkpoint_format, "gptq", "gptq_v2")
            return Scheme("gptq", zero_step=int(found.checkpoint_format == "gptq"))
        case "fp8":
            _require("weight_block_size", found.weight_block_size, None)
            return Scheme("fp8")
        case "compressed-tensors":
            _require("format", found.format, "float-quantized")
            for group in (found.config_groups or {}).values():
                strategy = group.weights.strategy if group.weights else None
                _require("strategy", strategy, "channel", "tensor")
            return Scheme("compressed-tensors")
        case method:
            raise ConfigError(
                f"weights quantised by {method!r} are not supported; supported: awq, gptq, fp8, "
                "compressed-tensors of 8-bit floats, and GGUF files"
            )


def _require(key: str, value: object, *values: object) -> None:
    if value not in values:
        supported = " or ".join(repr(value) for value in values)
        raise ConfigError(
            f"quantization_config: {key} {value!r} is not supported, only {supported}: "
            "use another file of this model"
        )
