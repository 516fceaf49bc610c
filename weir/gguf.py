"""Reads GGUF files: metadata and tensor directory, straight from a memory map.

Knows the bytes and sizes of quantised blocks, not their meaning: models/dequant.py unpacks them.
Files are not trusted: every length is checked against what is left
of the file before it is used, so a truncated or forged file is a `ConfigError`, never a crash or an
allocation larger than the file justifies.
Format: github.com/ggml-org/ggml/blob/master/docs/gguf.md, versions 2 and 3.
"""

import math
import mmap
from dataclasses import dataclass
from pathlib import Path
from struct import Struct, calcsize, unpack_from
from typing import Any, NamedTuple, Self

from weir.errors import ConfigError

MAX_ELEMENTS = 1 << 24  # of one metadata array; the largest vocabularies have a million
MAX_DEPTH = 4  # of arrays in arrays
MAX_DIMS = 4


class Format(NamedTuple):
    """How a tensor's values lie in the file: `block` values take `size` bytes."""

    name: str
    block: int
    size: int


FORMATS = {
    0: Format("F32", 1, 4), 1: Format("F16", 1, 2), 30: Format("BF16", 1, 2),
    24: Format("I8", 1, 1), 25: Format("I16", 1, 2), 26: Format("I32", 1, 4),
    27: Format("I64", 1, 8), 28: Format("F64", 1, 8),
    2: Format("Q4_0", 32, 18), 3: Format("Q4_1", 32, 20), 6: Format("Q5_0", 32, 22),
    7: Format("Q5_1", 32, 24), 8: Format("Q8_0", 32, 34), 9: Format("Q8_1", 32, 36),
    10: Format("Q2_K", 256, 84), 11: Format("Q3_K", 256, 110), 12: Format("Q4_K", 256, 144),
    13: Format("Q5_K", 256, 176), 14: Format("Q6_K", 256, 210), 15: Format("Q8_K", 256, 292),
    16: Format("IQ2_XXS", 256, 66), 17: Format("IQ2_XS", 256, 74), 22: Format("IQ2_S", 256, 82),
    18: Format("IQ3_XXS", 256, 98), 21: Format("IQ3_S", 256, 110),
    19: Format("IQ1_S", 256, 50), 29: Format("IQ1_M", 256, 56),
    20: Format("IQ4_NL", 32, 18), 23: Format("IQ4_XS", 256, 136),
    34: Format("TQ1_0", 256, 54), 35: Format("TQ2_0", 256, 66),
    39: Format("MXFP4", 32, 17), 40: Format("NVFP4", 64, 36),
    41: Format("Q1_0", 128, 18), 42: Format("Q2_0", 64, 18),
}  # fmt: skip
"""Every tensor type that ggml writes to files, by its number there."""

_SCALARS = dict(zip((0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 12), "BbHhIif?Qqd", strict=True))
_STRING, _ARRAY = 8, 9
_U32, _U64, _ARRAY_HEADER = Struct("<I"), Struct("<Q"), Struct("<IQ")


@dataclass(slots=True, frozen=True)
class TensorInfo:
    """A tensor of the directory."""

    name: str
    type: int  # key of FORMATS
    shape: tuple[int, ...]  # outermost first, as in torch
    offset: int  # of the first byte, in the file
    nbytes: int


class GGUF:
    """One open file. `metadata` maps each key to a number, bool, str or list of these.

    `data` hands out views of the memory map; the map lives as long as this object or any view.
    """

    def __init__(
        self, path: Path, view: memoryview, metadata: dict[str, Any], tensors: dict[str, TensorInfo]
    ):
        self.path = path
        self.metadata = metadata
        self.tensors = tensors
        self._view = view

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """Map the file and read its header; `ConfigError` if it is not a sound GGUF file."""
        path = Path(path)
        try:
            with path.open("rb") as file:
                buffer = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:  # ValueError: an empty file cannot be mapped
            raise ConfigError(f"cannot read {path}: {error}") from error
        header = _Header(path, buffer)
        tensor_count, metadata_count = header.counts()
        metadata = header.metadata(metadata_count)
        if metadata.get("split.count", 0) not in (0, 1):
            raise ConfigError(
                f"{path} is one of {metadata['split.count']} parts of a split model; "
                "join them with `llama-gguf-split --merge` first"
            )
        tensors = header.tensors(tensor_count, metadata.get("general.alignment", 32))
        return cls(path, memoryview(buffer), metadata, tensors)

    def data(self, name: str) -> memoryview:
        """The raw bytes of tensor `name`, uint8 [nbytes], read-only and not copied."""
        tensor = self.tensors[name]
        return self._view[tensor.offset : tensor.offset + tensor.nbytes]


class _Header:
    """A cursor over the header; `self.at` is the next byte to read."""

    def __init__(self, path: Path, buffer: mmap.mmap):
        self.path = path
        self.buffer = buffer
        self.size = len(buffer)
        self.at = 0

    def bad(self, what: str) -> ConfigError:
        return ConfigError(f"{self.path} is not a usable GGUF file: {what}; download it again")

    def truncated(self) -> ConfigError:
        return self.bad(f"it ends at byte {self.size}, in the middle of its header")

    def take(self, count: int) -> int:
        """Step over `count` bytes and return where they begin."""
        begin = self.at
        if count > self.size - begin:
            raise self.truncated()
        self.at = begin + count
        return begin

    def u32(self) -> int:
        return int(_U32.unpack_from(self.buffer, self.take(4))[0])

    def u64(self) -> int:
        return int(_U64.unpack_from(self.buffer, self.take(8))[0])

    def string(self) -> str:
        length = self.u64()
        begin = self.take(length)
        return self.buffer[begin : begin + length].decode("utf-8", "replace")

    def counts(self) -> tuple[int, int]:
        """(tensors, metadata entries)"""
        if self.buffer[:4] != b"GGUF":
            raise self.bad("it does not begin with the letters GGUF")
        self.take(4)
        version = self.u32()
        if version not in (2, 3):
            known = "big-endian" if version & 0xFFFF == 0 else f"version {version}"
            raise self.bad(f"it is {known}, and only little-endian versions 2 and 3 can be read")
        tensors, entries = self.u64(), self.u64()
        if tensors > self.size // 24 or entries > self.size // 13:  # the least one of each takes
            raise self.bad(f"it claims {tensors} tensors and {entries} metadata entries")
        return tensors, entries

    def metadata(self, count: int) -> dict[str, Any]:
        entries: dict[str, Any] = {}
        for _ in range(count):
            key = self.string()
            if key in entries:
                raise self.bad(f"metadata key {key!r} appears twice")
            entries[key] = self.value(self.u32(), key)
        return entries

    def value(self, kind: int, key: str, depth: int = 0) -> Any:
        if kind in _SCALARS:
            code = "<" + _SCALARS[kind]
            return unpack_from(code, self.buffer, self.take(calcsize(code)))[0]
        if kind == _STRING:
            return self.string()
        if kind != _ARRAY or depth == MAX_DEPTH:
            raise self.bad(f"metadata key {key!r} has unknown type {kind}")
        element, count = _ARRAY_HEADER.unpack_from(self.buffer, self.take(12))
        if count > MAX_ELEMENTS:
            raise self.bad(f"metadata key {key!r} claims {count} elements")
        if element in _SCALARS:
            code = f"<{count}{_SCALARS[element]}"
            return list(unpack_from(code, self.buffer, self.take(calcsize(code))))
        if element == _STRING:
            return self.strings(count)
        return [self.value(element, key, depth + 1) for _ in range(count)]

    def strings(self, count: int) -> list[str]:
        """`count` strings; the loop is flat because vocabularies have 10⁵ of them."""
        buffer, at, last, length_at = self.buffer, self.at, self.size - 8, _U64.unpack_from
        found = []
        for _ in range(count):
            if at > last:
                raise self.truncated()
            begin = at + 8
            at = begin + length_at(buffer, at)[0]
            found.append(buffer[begin:at])  # clamped to the file; the checks of `at` notice
        if at > self.size:
            raise self.truncated()
        self.at = at
        return [raw.decode("utf-8", "replace") for raw in found]

    def tensors(self, count: int, alignment: Any) -> dict[str, TensorInfo]:
        if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
            raise self.bad(f"general.alignment is {alignment!r}, not a power of two")
        entries = [self.tensor(alignment) for _ in range(count)]
        start = -(-self.at // alignment) * alignment
        tensors: dict[str, TensorInfo] = {}
        for name, kind, shape, offset, nbytes in entries:
            if name in tensors:
                raise self.bad(f"tensor {name!r} appears twice")
            begin = start + offset
            if begin + nbytes > self.size:
                raise self.bad(
                    f"it has {self.size} bytes, but tensor {name!r} ends at {begin + nbytes}"
                )
            tensors[name] = TensorInfo(name, kind, shape, begin, nbytes)
        return tensors

    def tensor(self, alignment: int) -> tuple[str, int, tuple[int, ...], int, int]:
        """(name, type, shape, offset from the start of the data, nbytes)"""
        name = self.string()
        dims = self.u32()
        if dims > MAX_DIMS:
            raise self.bad(f"tensor {name!r} claims {dims} dimensions")
        shape = tuple(self.u64() for _ in range(dims))[::-1]
        kind, offset = self.u32(), self.u64()
        form = FORMATS.get(kind)
        if form is None:
            raise self.bad(f"tensor {name!r} has unknown type {kind}")
        row = shape[-1] if shape else 1
        if 0 in shape or row % form.block or offset % alignment:
            raise self.bad(f"tensor {name!r} of type {form.name} has shape {shape} at {offset}")
        return name, kind, shape, offset, math.prod(shape) // form.block * form.size
