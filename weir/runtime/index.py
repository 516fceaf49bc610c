"""What a disk says of its pages while no engine has them open, so that the next one can trust them.

The index is written last, when an engine ends, and removed first, so it never speaks of pages that
have changed since. Knows no page, only checksums.
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
    identity: str  # of all that the content depends on
    record: int  # bytes a page
    sums: dict[int, int]  # page → CRC-32 of its record, of those that matter
    kept: bytes  # what the engine says of them, opaque here


def save(folder: Path, index: Index) -> None:
    """Whole or not at all. Raises OSError."""
    body, file = msgspec.msgpack.encode(index), folder / NAME
    temporary = file.with_suffix(".new")
    with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as opened:
        opened.write(MAGIC + _sum(body) + body)
        opened.flush()
        os.fsync(opened.fileno())
    temporary.replace(file)


def read(folder: Path, identity: str, record: int) -> Index | None:
    """The index of such pages; None if there is none. Raises ValueError, saying why, for one that
    cannot be trusted or is of other pages."""
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
    """From now on nothing is known of the pages."""
    (folder / NAME).unlink(missing_ok=True)


def identity(weights: Path, *parts: object) -> str:
    """Of KV pages: of the files of weights, by name, size and time, and of what else they depend
    on."""
    files = [weights] if weights.is_file() else sorted(weights.iterdir())
    stats = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return hashlib.sha256(repr((stats, parts)).encode()).hexdigest()


def _sum(body: bytes) -> bytes:
    return zlib.crc32(body).to_bytes(4, "little")
