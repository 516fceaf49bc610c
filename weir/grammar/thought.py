"""A grammar that applies once the reasoning has ended.

Until then all tokens are allowed except those that end an answer, so no answer escapes its grammar.
"""

from typing import Literal

from weir.core import Matcher, Thought


class ThoughtMatcher:
    """answer: matches what follows the reasoning. free: the mask during the reasoning. jumps:
    whether forced tokens are taken without sampling."""

    def __init__(self, answer: Matcher, thought: Thought, free: bytes, jumps: bool):
        self._answer = answer
        self._thought = thought
        self._free = free
        self._jumps = jumps
        self._then = list(thought.then)  # those still to come
        self._phase: Literal["start", "thought", "then", "answer"]
        self._phase = "thought" if thought.begin is None else "start"

    def begin(self) -> list[int]:
        return []

    def mask(self, alone: bool = False) -> bytes | None:
        if self._phase == "thought":
            return self._free
        if self._phase == "then":
            return _with(b"", self._then[0])
        mask = self._answer.mask(alone)
        if mask is not None and self._phase == "start":
            mask = _with(mask, self._thought.begin)
        return mask

    def advance(self, token: int, alone: bool = False) -> list[int] | None:
        if self._phase == "start":
            self._phase = "thought" if token == self._thought.begin else "answer"
        elif self._phase == "then":
            del self._then[0]
        elif self._phase == "thought" and token == self._thought.end:
            self._phase = "then"
            if self._jumps:
                then, self._then = self._then, []
                self._phase = "answer"
                return [token, *then, *self._answer.begin()]
        if self._phase == "answer":
            return self._answer.advance(token, alone)
        if self._phase == "then" and not self._then:
            self._phase = "answer"
        return [token]

    @property
    def complete(self) -> bool:
        return self._phase == "answer" and self._answer.complete


def _with(mask: bytes, token: int | None) -> bytes:
    """`mask` with one more token allowed."""
    assert token is not None
    wider = bytearray(mask.ljust(token // 8 + 1, b"\0"))
    wider[token // 8] |= 1 << token % 8
    return bytes(wider)
