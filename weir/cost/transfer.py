"""Moves of KV pages between tiers: how many a plan may have, and the time that they take.

A GPU's link works concurrently with the GPU (weir.runtime.link): pages pass through slots on the
GPU, and a step waits only for what does not fit these. A step waits for reads from disk.
"""

from collections import Counter
from collections.abc import Iterable

from weir.core import Move, Tier

SLOTS = 4
"""Slots in each direction."""
SLOT = 128 << 20
"""Most bytes of a slot."""
DISK = 32 << 20
"""Most bytes that one plan may load from a disk."""
PENDING = 256 << 20
"""A disk accepts no more to write, or to read ahead, while this many bytes wait."""


def slot_rows(record: int, count: int) -> int:
    """Records of `record` bytes in a slot: at most a sixteenth of the host's `count`."""
    return max(1, min(SLOT // record, count // 16))


def slot_bytes(record: int, count: int) -> int:
    """Bytes of all slots on the GPU."""
    return 2 * SLOTS * slot_rows(record, count) * record


def loads(record: int, pages: dict[int, int]) -> dict[int, int]:
    """Colder tier → most pages that a plan may load from it. pages: tier → pages that it holds."""
    _, *colder = sorted(pages)
    most = {Tier.CPU: SLOTS * slot_rows(record, pages.get(Tier.CPU, 0)), Tier.DISK: DISK // record}
    return {tier: max(1, most[Tier(tier)]) for tier in colder}


class Transfers:
    """The links between tiers in virtual time. They do not slow each other down.

    record: bytes of a page. link: bytes/s between a GPU and main memory, in each direction. read,
    write: bytes/s of the disk."""

    def __init__(self, record: int, link: float, read: float, write: float):
        self.record = record
        self.rates = {"up": link, "down": link, "read": read, "write": write}
        self.free = dict.fromkeys(self.rates, 0.0)
        self.moved: Counter[str] = Counter()  # bytes

    def begin(self, moves: Iterable[Move], now: float, free: float) -> float:
        """The time at which the lanes of a plan submitted `now` can start, on a device that has
        finished earlier plans at `free`."""
        pages = Counter(_way(src.tier, dst.tier) for src, dst in moves)
        for way in ("read", "up"):  # start as soon as the plan is known
            if pages[way]:
                free = max(free, self._take(way, pages[way], now))
        for way, room in (("down", SLOTS * SLOT), ("write", PENDING)):
            if pages[way]:  # start with the plan, which waits only for what does not fit
                free = max(free, self._take(way, pages[way], free) - room / self.rates[way])
        return free

    def loaded(self, tier: int) -> tuple[int, float]:
        """Bytes loaded from a tier so far, and the seconds that this took."""
        way = "read" if tier == Tier.DISK else "up"
        return self.moved[way], self.moved[way] / self.rates[way]

    def _take(self, way: str, pages: int, now: float) -> float:
        """Use a link for `pages` pages. Returns the time at which it is free again."""
        size = pages * self.record
        self.moved[way] += size
        self.free[way] = max(self.free[way], now) + size / self.rates[way]
        return self.free[way]


def _way(source: int, target: int) -> str:
    if Tier.DISK in (source, target):
        return "read" if source == Tier.DISK else "write"
    return "up" if source > target else "down"
