"""Tells which waiting requests have gained a page because the tree took in their next one.

A request is filed under the position and tokens of the first page that it did not find. A lookup
costs one hash, so thousands may wait.
"""

from weir.core import Request

Spot = tuple[int, tuple[int, ...]]  # position of a page's first token, and its tokens


class Watch:
    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Forget all requests."""
        self._spots: dict[Spot, dict[int, Request]] = {}
        self._where: dict[int, Spot] = {}
        self._come: list[Request] = []

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

    def taken(self, at: int, key: tuple[int, ...], page: int) -> None:
        """The tree has taken in pages of the tokens `key` from position `at` on."""
        if self._spots and (there := self._spots.pop((at, key[:page]), None)) is not None:
            for uid, r in there.items():
                del self._where[uid]
                self._come.append(r)

    def come(self, most: int) -> list[Request]:
        """At most `most` of the requests whose page was taken in; each is returned once."""
        come, self._come = self._come[:most], self._come[most:]
        return come
