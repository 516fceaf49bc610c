"""Tells which waiting requests would find another page, because the tree was given it.

A request is filed under the position and tokens of the first page that it did not find. A lookup
costs one hash, so thousands may wait.
"""

from weir.core import Request

Spot = tuple[int, tuple[int, ...]]  # position of a page's first token, and its tokens


class Watch:
    """The waiting requests, each filed under the page that it lacks."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Forget all requests."""
        self._spots: dict[Spot, dict[int, Request]] = {}
        self._where: dict[int, Spot] = {}
        self._added: list[Request] = []

    def __len__(self) -> int:
        return len(self._where)

    def put(self, r: Request, spot: Spot) -> None:
        """File `r` under `spot`, and nowhere else."""
        if self._where.get(r.uid) != spot:
            self.forget(r)
            self._where[r.uid] = spot
            self._spots.setdefault(spot, {})[r.uid] = r

    def forget(self, r: Request) -> None:
        spot = self._where.pop(r.uid, None)
        if spot is not None:
            there = self._spots[spot]
            del there[r.uid]
            if not there:
                del self._spots[spot]

    def added(self, at: int, key: tuple[int, ...], page: int) -> None:
        """The tree was given pages of the tokens `key`, which begin at position `at`."""
        if self._spots and (there := self._spots.pop((at, key[:page]), None)) is not None:
            for uid, r in there.items():
                del self._where[uid]
                self._added.append(r)

    def pop(self, most: int) -> list[Request]:
        """At most `most` of the requests whose page the tree was given; each is returned once."""
        found, self._added = self._added[:most], self._added[most:]
        return found
