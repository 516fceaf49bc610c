"""The waiting requests in rank order, at a cost that does not grow with their number.

A request is ranked once and again only when its ranking says so. A step reads only the heads of
groups, and of these only those that may come first.
"""

import heapq
from collections.abc import Collection, Iterable, Iterator, Sequence

from weir.core import Request
from weir.sched.ranking import Group, Key, Ranking

Entry = tuple[Key, Request]  # a key ends with the uid, so requests are never compared


class Waiting(Collection[Request]):
    def __init__(self, ranking: Ranking):
        self._ranking = ranking
        self._where: dict[int, tuple[Group, Entry, int]] = {}
        self.todo = 0  # sum of their `todo` when they were added
        # A heap of entries per group. An entry is valid while `_where` holds it; stale ones are
        # skipped when they come up.
        self._groups: dict[Group, list[Entry]] = {}
        self._stale = 0  # stale entries
        # A heap of groups by their heads. A head moves forward only when a request is put in
        # front, which pushes a new entry; so the top may stand too early, never too late. Only
        # the latest entry of a group is valid.
        self._heads: list[tuple[Key, int, Group]] = []
        self._latest: dict[Group, int] = {}
        self._serial = 0

    def __len__(self) -> int:
        return len(self._where)

    def __iter__(self) -> Iterator[Request]:
        """In no particular order."""
        return (entry[1] for _, entry, _ in self._where.values())

    def __contains__(self, r: object) -> bool:
        return isinstance(r, Request) and r.uid in self._where

    def add(self, requests: Sequence[Request]) -> None:
        for r, (group, key) in zip(requests, self._ranking.rank(requests), strict=True):
            entry = ((*key, r.arrival, r.uid), r)
            self._where[r.uid] = group, entry, r.todo
            self.todo += r.todo
            members = self._groups.setdefault(group, [])
            heapq.heappush(members, entry)
            if members[0] is entry:
                heapq.heappush(self._heads, self._head(group))
        many = self._stale > 64 + 4 * len(self._where)
        if many or len(self._heads) > 64 + 4 * len(self._groups):
            self._rebuild()

    def discard(self, r: Request) -> None:
        where = self._where.pop(r.uid, None)
        if where is not None:
            self.todo -= where[2]
            self._stale += 1

    def renew(self, moved: Iterable[Request]) -> None:
        """Rank again those of `moved` that wait."""
        found = {r.uid: r for r in moved if r.uid in self._where}
        for r in found.values():
            self.discard(r)
        if not self._where:
            self._rebuild()
        self.add(list(found.values()))

    def first(self) -> Entry | None:
        """The first waiting request, and its place among all live requests."""
        while self._heads:
            key, serial, group = self._heads[0]
            if self._latest.get(group) != serial:
                heapq.heappop(self._heads)
            elif (entry := self._least(group)) is None:
                heapq.heappop(self._heads)
                del self._groups[group], self._latest[group]
            elif (*self._ranking.place(group), *entry[0]) == key:
                return key, entry[1]
            else:
                heapq.heapreplace(self._heads, self._head(group))
        return None

    def _least(self, group: Group) -> Entry | None:
        """The first member of a group."""
        members = self._groups[group]
        while members:
            entry = members[0]
            where = self._where.get(entry[1].uid)
            if where is not None and where[1] is entry:
                return entry
            heapq.heappop(members)
            self._stale -= 1
        return None

    def _head(self, group: Group) -> tuple[Key, int, Group]:
        """A new entry of a group for `_heads`; replaces every earlier one."""
        self._serial += 1
        self._latest[group] = self._serial
        return (*self._ranking.place(group), *self._groups[group][0][0]), self._serial, group

    def _rebuild(self) -> None:
        """Drop all stale entries."""
        self._groups, self._latest, self._stale = {}, {}, 0
        for group, entry, _ in self._where.values():
            self._groups.setdefault(group, []).append(entry)
        for members in self._groups.values():
            heapq.heapify(members)
        self._heads = [self._head(group) for group in self._groups]
        heapq.heapify(self._heads)
