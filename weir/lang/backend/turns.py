"""The text around the turns of a conversation, as a model's chat template writes it.

A program's text only ever grows, so a turn needs what stands before and after its content,
whatever the content is. Both are read off conversations of marks.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache, partial

from weir.errors import BadRequest
from weir.lang.backend.base import Turn

Render = Callable[[Sequence[dict[str, str]], bool], str]
"""A conversation's text; whether the assistant's next turn begins at its end."""


def turns(render: Render) -> Callable[[tuple[str, ...]], Turn]:
    """What finds the text between the content of the turn before and of the last one of `roles`,
    and what ends the last one. Raises BadRequest when the template refuses such a conversation."""
    return lru_cache(256)(partial(_turn, render))


def _turn(render: Render, roles: tuple[str, ...]) -> Turn:
    marks = [f"\ue000{i}\ue001" for i in range(len(roles))]
    said = [{"role": role, "content": mark} for role, mark in zip(roles, marks, strict=True)]
    before, found, after = render(said, False).rpartition(marks[-1])
    if roles[-1] == "assistant":
        # a template may open the model's own turn with more than it shows of a finished one
        asked = render(said[:-1], True)
        if asked != render(said[:-1], False):
            before = asked
    if not found or (len(marks) > 1 and marks[-2] not in before):
        raise BadRequest(f"the chat template does not show a turn of {roles[-1]!r}")
    if len(marks) > 1:
        before = before.rpartition(marks[-2])[2]
    return Turn(before, after)
