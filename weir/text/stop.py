"""Finds stop strings in a stream of text, holding back only what could still become one."""

from collections import deque
from collections.abc import Sequence


class StopChecker:
    """An Aho-Corasick automaton over the stop strings; cost is linear in the text, whatever the
    number of stops.

    The first stop is the one whose last character comes first; of several that end there, the
    longest. So the answer does not depend on how the text was cut into deltas.
    """

    def __init__(self, stops: Sequence[str], include: bool = False):
        """`include`: leave the matched stop string in the text. Stop strings must not be empty."""
        self._include = include
        self._next: list[dict[str, int]] = [{}]  # node → character → child; node 0 is the root
        self._depth = [0]
        self._found = [0]  # node → length of the longest stop ending here; 0: none
        self._fail = [0]  # node → the longest proper suffix of it that is a node
        for stop in stops:
            self._add(stop)
        self._link()
        self._node = 0
        self._held = ""  # text not yet emitted: the path from the root to self._node

    def _add(self, stop: str) -> None:
        node = 0
        for character in stop:
            child = self._next[node].get(character)
            if child is None:
                child = len(self._next)
                self._next[node][character] = child
                self._next.append({})
                self._depth.append(self._depth[node] + 1)
                self._found.append(0)
                self._fail.append(0)
            node = child
        self._found[node] = len(stop)

    def _link(self) -> None:
        """Fill `_fail` breadth first, so that each node's suffixes are complete before it."""
        queue = deque(self._next[0].values())
        while queue:
            node = queue.popleft()
            for character, child in self._next[node].items():
                self._fail[child] = self._step(self._fail[node], character)
                self._found[child] = self._found[child] or self._found[self._fail[child]]
                queue.append(child)

    def _step(self, node: int, character: str) -> int:
        while node and character not in self._next[node]:
            node = self._fail[node]
        return self._next[node].get(character, 0)

    def push(self, delta: str) -> tuple[str, str | None]:
        """Take more text; return what may be shown, and the stop string that ended it, if any.

        After a match the checker is spent: the rest of the delta is dropped.
        """
        text, node = self._held + delta, self._node
        for end, character in enumerate(delta, len(self._held) + 1):
            node = self._step(node, character)
            if length := self._found[node]:
                self._held, self._node = "", 0
                stop = text[end - length : end]
                return text[: end if self._include else end - length], stop
        self._node = node
        safe = len(text) - self._depth[node]
        self._held = text[safe:]
        return text[:safe], None

    def finish(self) -> str:
        """The text still held back, when the stream ends without a stop."""
        held, self._held, self._node = self._held, "", 0
        return held
