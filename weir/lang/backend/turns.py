"""The text around the turns of a conversation, as a model's chat template writes it.

A program's text only grows, so the text before and after a turn must be known whatever its content
is. Both are found by rendering conversations whose contents are marks.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache, partial

from weir.errors import BadRequest
from weir.lang.backend.base import Turn

Render = Callable[[Sequence[dict[str, str]], bool], str]
"""Renders a conversation. The bool: end with the beginning of the assistant's next turn."""


def turns(render: Render) -> Callable[[tuple[str, ...]], Turn]:
    """A function of the roles of a conversation, which returns the text between the contents of the
    last two turns, and the text that ends the last. It raises BadRequest if the template refuses
    such a conversation."""
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
