"""The index of the KV pages on a disk, by which the next engine can tell that they are valid.

It is written last, when an engine ends, and removed first, when the next one starts, so it never
describes pages that changed later.
"""

import hashlib
import os
import zlib
from pathlib import Path

import msgspec
from msgspec import Struct

MAGIC = b"weir-kv-1\n"
NAME = "kv.index"


class Index(Struct, frozen=True):
    identity: str  # hash of all that the pages' content depends on
    record: int  # bytes of a page
    sums: dict[int, int]  # saved page → CRC-32 of its record
    kept: bytes  # the engine's own description of them, opaque here


def save(folder: Path, index: Index) -> None:
    """Write the index atomically. Raises OSError."""
    body, file = msgspec.msgpack.encode(index), folder / NAME
    temporary = file.with_suffix(".new")
    with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as opened:
        opened.write(MAGIC + _sum(body) + body)
        opened.flush()
        os.fsync(opened.fileno())
    temporary.replace(file)


def read(folder: Path, identity: str, record: int) -> Index | None:
    """The index in a folder; None if there is none. Raises ValueError, which says why, if it cannot
    be trusted or has another identity or record size."""
    try:
        content = (folder / NAME).read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ValueError(f"its index cannot be read: {error.strerror}") from None
    sum, body = content[len(MAGIC) : len(MAGIC) + 4], content[len(MAGIC) + 4 :]
    if not content.startswith(MAGIC):
        raise ValueError("its index is not one of this version")
    if _sum(body) != sum:
        raise ValueError("its index is damaged")
    try:
        index = msgspec.msgpack.decode(body, type=Index)
    except msgspec.DecodeError:
        raise ValueError("its index makes no sense") from None
    if (index.identity, index.record) != (identity, record):
        raise ValueError("it belongs to another model, KV type or version")
    return index


def remove(folder: Path) -> None:
    """Delete the index: the pages are about to change."""
    (folder / NAME).unlink(missing_ok=True)


def identity(weights: Path, *parts: object) -> str:
    """A hash of what KV pages depend on: each weights file's name, size and time, and `parts`."""
    files = [weights] if weights.is_file() else sorted(weights.iterdir())
    stats = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return hashlib.sha256(repr((stats, parts)).encode()).hexdigest()


def _sum(body: bytes) -> bytes:
    return zlib.crc32(body).to_bytes(4, "little")
