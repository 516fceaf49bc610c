"""Moving KV pages between tiers: how much of it a plan may ask for, and what it takes.

A GPU's link is used beside the GPU's work (weir.runtime.link does it): pages pass through slots on
the GPU, and a step waits only for more than fits these. A disk is read while the step waits.
"""

from collections import Counter
from collections.abc import Iterable

from weir.core import Move, Tier

SLOTS = 4
"""Of each direction."""
SLOT = 128 << 20
"""Bytes of a slot, at most."""
DISK = 32 << 20
"""Bytes that one plan may bring from a disk."""
PENDING = 256 << 20
"""Bytes that wait to be written to a disk, or read, after which no more is brought."""


def slot_rows(record: int, count: int) -> int:
    """Records of a slot, of so many bytes: no more than a sixteenth of what the host holds."""
    return max(1, min(SLOT // record, count // 16))


def slot_bytes(record: int, count: int) -> int:
    """Bytes that all slots take on the GPU."""
    return 2 * SLOTS * slot_rows(record, count) * record


def loads(record: int, pages: dict[int, int]) -> dict[int, int]:
    """Most pages that a plan may bring from each tier, of those that hold so many."""
    _, *colder = sorted(pages)
    most = {Tier.CPU: SLOTS * slot_rows(record, pages.get(Tier.CPU, 0)), Tier.DISK: DISK // record}
    return {tier: max(1, most[Tier(tier)]) for tier in colder}


class Transfers:
    """The ways between tiers, in virtual time, each as fast as nothing else were under way.

    record: bytes of a page. link: bytes/s between a GPU and main memory, either way. read, write:
    bytes/s of the disk."""

    def __init__(self, record: int, link: float, read: float, write: float):
        self.record = record
        self.rates = {"up": link, "down": link, "read": read, "write": write}
        self.free = dict.fromkeys(self.rates, 0.0)
        self.moved: Counter[str] = Counter()  # bytes

    def begin(self, moves: Iterable[Move], now: float, free: float) -> float:
        """When the lanes of a plan that is submitted `now` can start, on a device that is done with
        the plans before it at `free`."""
        pages = Counter(_way(src.tier, dst.tier) for src, dst in moves)
        for way in ("read", "up"):  # begun as soon as the plan is known
            if pages[way]:
                free = max(free, self._take(way, pages[way], now))
        for way, room in (("down", SLOTS * SLOT), ("write", PENDING)):
            if pages[way]:  # begun when the plan is, and waited for only by what does not fit
                free = max(free, self._take(way, pages[way], free) - room / self.rates[way])
        return free

    def loaded(self, tier: int) -> tuple[int, float]:
        """Bytes brought from a tier so far, and the seconds that took."""
        way = "read" if tier == Tier.DISK else "up"
        return self.moved[way], self.moved[way] / self.rates[way]

    def _take(self, way: str, pages: int, now: float) -> float:
        """Use a way for so many pages. Returns when it is free again."""
        size = pages * self.record
        self.moved[way] += size
        self.free[way] = max(self.free[way], now) + size / self.rates[way]
        return self.free[way]


def _way(source: int, target: int) -> str:
    if Tier.DISK in (source, target):
        return "read" if source == Tier.DISK else "write"
    return "up" if source > target else "down"
