"""The text around the turns of a conversation, as a model's chat template writes it.

A program's text only ever grows, so a turn needs what stands before and after its content,
whatever the content is. Both are read off conversations of marks.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Protocol

from weir.errors import BadRequest
from weir.lang.backend.base import Turn


class Templated(Protocol):
    """What renders a conversation; `weir.text.Text` is one."""

    def chat(
        self, messages: Sequence[dict[str, Any]], *, add_generation_prompt: bool = True
    ) -> str: ...


class Turns:
    """text: renders conversations."""

    def __init__(self, text: Templated):
        self._text = text
        self._found = lru_cache(maxsize=256)(self._find)

    def turn(self, roles: Sequence[str]) -> Turn:
        """What stands between the content of the turn before and of the last one of `roles`, and
        what ends the last one. Raises BadRequest when the template refuses such a conversation."""
        return self._found(tuple(roles))

    def _find(self, roles: tuple[str, ...]) -> Turn:
        marks = [f"\ue000{i}\ue001" for i in range(len(roles))]
        turns = [{"role": role, "content": mark} for role, mark in zip(roles, marks, strict=True)]
        whole = self._text.chat(turns, add_generation_prompt=False)
        before, found, after = whole.rpartition(marks[-1])
        if roles[-1] == "assistant":
            # a template may open the model's own turn with more than it shows of a finished one
            asked = self._text.chat(turns[:-1], add_generation_prompt=True)
            if asked != self._text.chat(turns[:-1], add_generation_prompt=False):
                before = asked
        if not found or (len(marks) > 1 and marks[-2] not in before):
            raise BadRequest(f"the chat template does not show a turn of {roles[-1]!r}")
        if len(marks) > 1:
            before = before.rpartition(marks[-2])[2]
        return Turn(before, after)
