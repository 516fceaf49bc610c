"""Quantised weights as plain numbers: their meaning, and how they are made from floats.

`weir.ops.linear` chooses their layout for the device that multiplies them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

FP8 = torch.float8_e4m3fn
FP8_MOST = 448.0
SLICE = 1 << 24
"""Numbers of a weight that are coded or laid out at once, which takes a few times as many bytes of
scratch memory. The largest weights have ten times as many numbers."""
GROUP = 64  # FlexGen, section 5: the best balance of accuracy and size


@dataclass(slots=True, eq=False)
class Codes:
    """A weight [N, K] of numbers scale * code + offset; groups along K share scale and offset.

    codes: uint8 [N, K], below 2^bits. pairs: scale and offset, float16 [N, K / group, 2]; group is
    16, 32, 64 or 128. symmetric: every offset is -2^(bits - 1) times its scale.
    """

    codes: Tensor
    pairs: Tensor
    bits: int
    symmetric: bool = False

    @property
    def group(self) -> int:
        return self.codes.shape[1] // self.pairs.shape[1]

    def to(self, device: torch.device) -> Codes:
        return replace(self, codes=self.codes.to(device), pairs=self.pairs.to(device))

    def alike(self, other: object) -> bool:
        """Whether both can be joined to one weight."""
        if not isinstance(other, Codes) or (self.group < 32) != (other.group < 32):
            return False
        return (self.bits, self.symmetric) == (other.bits, other.symmetric)

    def join(self, other: Codes) -> Codes:
        """One weight of the rows of both, which are `alike` and have the same K."""
        group = min(self.group, other.group)
        pairs = torch.cat([part.regrouped(group).pairs for part in (self, other)])
        return replace(self, codes=torch.cat((self.codes, other.codes)), pairs=pairs)

    def shuffle(self, order: Tensor) -> Codes:
        """The rows in another order."""
        return replace(self, codes=self.codes[order], pairs=self.pairs[order])

    def regrouped(self, group: int) -> Codes:
        """The same numbers in smaller groups, several of which have the same pair."""
        return replace(self, pairs=self.pairs.repeat_interleave(self.group // group, 1))

    def floats(self) -> Tensor:
        """float32 [N, K]."""
        groups = self.codes.view(*self.pairs.shape[:2], self.group).float()
        scale, offset = self.pairs.float().unsqueeze(-2).unbind(-1)
        return groups.mul_(scale).add_(offset).view(self.codes.shape)


@dataclass(slots=True, eq=False)
class Scaled:
    """A matrix [N, K] of 8-bit floats: values e4m3 [N, K] times scales float32 [N]."""

    values: Tensor
    scales: Tensor

    def to(self, device: torch.device) -> Scaled:
        return Scaled(self.values.to(device), self.scales.to(device))

    def alike(self, other: object) -> bool:
        """Whether both can be joined to one weight."""
        return isinstance(other, Scaled)

    def join(self, other: Scaled) -> Scaled:
        """One weight of the rows of both, which have the same K."""
        values = torch.cat([part.values.view(torch.uint8) for part in (self, other)])
        return Scaled(values.view(FP8), torch.cat((self.scales, other.scales)))

    def floats(self) -> Tensor:
        """float32 [N, K]."""
        return self.values.float().mul_(self.scales.unsqueeze(1))


def to_codes(weight: Tensor, group: int = GROUP) -> Codes:
    """weight [N, K] in 4 bits: the minimum of a group is code 0, the maximum 15.

    Asymmetric, as in FlexGen (section 5). K must be a multiple of `group`.
    """
    n, k = weight.shape
    codes = torch.empty(n, k, dtype=torch.uint8, device=weight.device)
    pairs = torch.empty(n, k // group, 2, dtype=torch.float16, device=weight.device)
    rows = max(1, SLICE // k)
    for some, into, made in zip(*(x.split(rows) for x in (weight, codes, pairs)), strict=True):
        groups = some.float().view(len(some), k // group, group)
        least, most = groups.aminmax(dim=-1)
        made.copy_(torch.stack(((most - least) / 15, least), dim=-1))
        scale, offset = made.float().unsqueeze(-2).unbind(-1)
        steps = (groups - offset).div_(scale.clamp(min=2.0**-24)).round_().clamp_(0, 15)
        into.copy_(steps.view(into.shape))
    return Codes(codes, pairs, 4)


def to_fp8(rows: Tensor) -> Scaled:
    """rows [M, K], each scaled such that its largest magnitude is e4m3's maximum."""
    wide = rows.float()
    scales = wide.abs().amax(1).clamp(min=1e-30) / FP8_MOST
    values = (wide / scales.unsqueeze(1)).clamp_(-FP8_MOST, FP8_MOST)
    return Scaled(values.to(FP8), scales)


def to_tiles(codes: Codes, rows: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """4-bit codes in the order in which a GPU program reads them. K must be a multiple of 64.

    → codes uint8 [tiles, K / 64, rows, 32], where byte i holds column i of 64 in its low half and
    column i + 32 in its high half; pairs [tiles, K / group, rows, 2] of a 16-bit `dtype`. The last
    tile is padded with rows of zeros.
    """
    n, k = codes.codes.shape
    count = -(-n // rows)
    tiles = torch.empty(count, k // 64, rows, 32, dtype=torch.uint8, device=codes.codes.device)
    for at, into in enumerate(tiles.split(most := max(1, SLICE // (rows * k)))):
        some = codes.codes[at * most * rows :][: len(into) * rows]
        whole = torch.nn.functional.pad(some, (0, 0, 0, len(into) * rows - len(some)))
        low, high = whole.view(len(into), rows, k // 64, 2, 32).transpose(1, 2).unbind(3)
        torch.bitwise_or(low, high << 4, out=into)
    pairs = torch.nn.functional.pad(codes.pairs.to(dtype), (0, 0, 0, 0, 0, count * rows - n))
    return tiles, pairs.view(count, rows, -1, 2).transpose(1, 2).contiguous()


def from_tiles(tiles: Tensor, pairs: Tensor, n: int) -> Codes:
    """The reverse of `to_tiles`, for codes of `n` rows."""
    count, blocks, rows, _ = tiles.shape
    both = torch.stack((tiles & 15, tiles >> 4), dim=3)
    codes = both.transpose(1, 2).reshape(count * rows, blocks * 64)[:n]
    pairs = pairs.transpose(1, 2).reshape(count * rows, -1, 2)[:n]
    return Codes(codes.contiguous(), pairs.contiguous(), 4)
