"""The types of settings, their units, and how text becomes a value.

Knows no setting by name.
"""

import math
import re
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin

import msgspec
from msgspec import Meta
from msgspec.structs import FieldInfo

from weir.errors import ConfigError

UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
UNITS |= {"ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}

Text = Annotated[str, Meta(min_length=1)]
File = Annotated[str, Meta(min_length=1, extra={"unit": "FILE"})]
Folder = Annotated[str, Meta(min_length=1, extra={"unit": "FOLDER"})]
Count = Annotated[int, Meta(ge=0, extra={"unit": "N"})]
Positive = Annotated[int, Meta(ge=1, extra={"unit": "N"})]
Answers = Annotated[int, Meta(ge=0, le=4096, extra={"unit": "N"})]  # learning takes their cube
Bytes = Annotated[int, Meta(ge=0, extra={"unit": "SIZE"})]
Port = Annotated[int, Meta(ge=0, le=65535, extra={"unit": "PORT"})]
Share = Annotated[float, Meta(gt=0, le=1, extra={"unit": "SHARE"})]
Seconds = Annotated[float, Meta(gt=0, extra={"unit": "SECONDS"})]
Duration = Annotated[float, Meta(ge=0, extra={"unit": "TIME"})]


def about(description: str) -> Meta:
    """The line of help of a setting, the last annotation of its type."""
    return Meta(description=description)


def default(info: FieldInfo) -> Any:
    """The value of a setting that is not given."""
    made = info.default_factory
    return info.default if made is msgspec.NODEFAULT else made()


def describe(info: FieldInfo) -> str:
    """One line of help."""
    return str(info.type.__metadata__[-1].description)


def unit(info: FieldInfo) -> str:
    """The placeholder of a value in help, such as SIZE; empty if its type has none."""
    kind = info.type.__origin__
    inner = next((part for part in get_args(kind) if get_origin(part) is Annotated), kind)
    metas = (*info.type.__metadata__, *getattr(inner, "__metadata__", ()))
    return str(next((meta.extra["unit"] for meta in metas if meta.extra), ""))


def plain(kind: Any) -> Any:
    """A field's type without constraints or None: str, int, float, bool, list or a Literal."""
    while get_origin(kind) is Annotated:
        kind = get_args(kind)[0]
    if kind is not list and NoneType in get_args(kind):
        return plain(next(part for part in get_args(kind) if part is not NoneType))
    return get_origin(kind) if get_origin(kind) is list else kind


def parse_size(text: str) -> int:
    """Bytes in `8GiB`, `512 MiB`, `1.5g` (10⁹) or `1024`. Raises `ValueError`."""
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([kmgt]?i?)b?", text.strip().lower())
    if match is None or match[2] not in UNITS:
        raise ValueError("expected a size such as 8GiB, 512MiB or 1024")
    return int(float(match[1]) * UNITS[match[2]])


def parse_duration(text: str) -> float:
    """Seconds in `50ms`, `1.5s` or `0.05`. Raises `ValueError`."""
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*(ms|s|)", text.strip().lower())
    if match is None:
        raise ValueError("expected a duration such as 50ms or 1.5s")
    return float(match[1]) / (1000 if match[2] == "ms" else 1)


PARSERS = {"SIZE": parse_size, "TIME": parse_duration}
"""How text becomes a number, by unit; others are plain numbers."""


def convert(info: FieldInfo, value: object, where: str) -> object:
    """A value as the field's type. Raises `ConfigError`, saying `where` it was written."""
    kind = plain(info.type)
    text = value.strip() if isinstance(value, str) else ""
    if kind is not str and text == "auto" and "auto" not in get_args(kind):
        return default(info)
    if kind is list and isinstance(value, str):
        value = [part.strip() for part in value.split(",") if part.strip()]
    try:
        if text and (parse := PARSERS.get(unit(info))):
            value = parse(text)
        result = msgspec.convert(value, info.type, strict=False)
        if isinstance(result, float) and not math.isfinite(result):
            raise ValueError("expected a finite number")
    except ValueError as error:
        allowed = [str(choice) for choice in get_args(kind)] if get_origin(kind) is Literal else []
        rule = f"expected one of {', '.join(allowed)}" if allowed else str(error).split(", got")[0]
        message = f"{where}: {rule[0].lower()}{rule[1:]}, got {value!r}"
        if text.startswith("tcp://"):
            message += (
                " (Kubernetes sets this variable for a Service named weir: give the Service another"
                " name, or set enableServiceLinks: false)"
            )
        raise ConfigError(message) from None
    return result
