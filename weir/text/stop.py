"""Finds stop strings in a stream of text, and holds back only text that may become one."""

from collections.abc import Sequence
from functools import lru_cache


class StopChecker:
    """Searches for each stop string (Knuth, Morris and Pratt 1977) in time linear in the text.

    The first match is the one that ends first; of several that end there, the longest. So the
    result does not depend on how the text was cut into deltas.
    """

    def __init__(self, stops: Sequence[str], include: bool = False):
        """`include`: leave the matched stop string in the text. Stop strings must not be empty."""
        self._include = include
        self._stops = [(stop, _borders(stop)) for stop in stops]
        self._firsts = {stop[0] for stop in stops}
        self._begun = [0] * len(stops)  # per stop, how many of its characters end the text
        self._held = ""  # text not yet returned: the longest of these

    def push(self, delta: str) -> tuple[str, str | None]:
        """Take more text; return what may be shown, and the stop string that ended it, if any.

        After a match the rest of the delta is dropped and the checker must not be used again.
        """
        text, longest = self._held + delta, len(self._held)
        for end, character in enumerate(delta, len(self._held) + 1):
            if not longest and character not in self._firsts:
                continue
            if stop := self._advance(character):
                self._held = ""
                return text[: end if self._include else end - len(stop)], stop
            longest = max(self._begun)
        safe = len(text) - longest
        self._held = text[safe:]
        return text[:safe], None

    def _advance(self, character: str) -> str:
        """The longest stop that ends with this character; empty: none does."""
        found = ""
        for at, (stop, borders) in enumerate(self._stops):
            length = self._begun[at]
            while length and stop[length] != character:
                length = borders[length]
            length += stop[length] == character
            if length == len(stop):
                found, length = max(found, stop, key=len), borders[length]
            self._begun[at] = length
        return found

    def finish(self) -> str:
        """The text still held back, when the stream ends without a stop."""
        held, self._held = self._held, ""
        return held


@lru_cache(256)
def _borders(stop: str) -> list[int]:
    """For each n, the length of the longest proper prefix of `stop[:n]` that is also its suffix."""
    borders = [0, 0]
    for character in stop[1:]:
        length = borders[-1]
        while length and stop[length] != character:
            length = borders[length]
        borders.append(length + (stop[length] == character))
    return borders


def before(held: str, mark: str, last: bool) -> tuple[str, bool, str]:
    """The text before `mark`, whether it was found, and the text after it. If it was not found but
    more text will come, the third is the end that may become a mark."""
    shown, found, rest = held.partition(mark)
    if found or last:
        return shown, bool(found), rest
    keep = max((n for n in range(1, len(mark)) if held.endswith(mark[:n])), default=0)
    at = len(held) - keep
    return held[:at], False, held[at:]
