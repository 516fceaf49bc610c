"""Compresses the records of KV pages on disk with the formats of ops/coded.py.

int8 takes 1.94 times fewer bytes than 16-bit numbers, with a root mean square error of 0.6 % on
normally distributed numbers; int4 takes 3.56 times fewer, with 9 %.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from weir.errors import ConfigError
from weir.ops.coded import GROUP, decode, encode, row_bytes

Bytes = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Codec:
    """kind: int8 or int4. record: bytes of a record before coding. dtype: of its numbers.

    Raises `ConfigError` if a record is not a whole number of groups."""

    kind: torch.dtype
    record: int
    dtype: torch.dtype

    def __post_init__(self) -> None:
        if self.record % (GROUP * self.dtype.itemsize):
            raise ConfigError("--cold-kv-dtype needs a larger --block-size")

    @property
    def size(self) -> int:
        """Bytes of a coded record."""
        return row_bytes(self.kind, self.record // self.dtype.itemsize)

    def encode(self, record: Bytes) -> Bytes:
        """uint8 [record] → [size]"""
        return encode(torch.from_numpy(record).view(self.dtype), self.kind).numpy()

    def decode(self, coded: Bytes) -> Bytes:
        """uint8 [size] → [record], with the error that coding made."""
        x = decode(torch.from_numpy(coded), self.kind)
        return x.to(self.dtype).view(torch.uint8).numpy()
