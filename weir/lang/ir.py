"""What a program may append to its state: plain data, each node the work of one moment."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

ROLES = "system", "user", "assistant"


class Node:
    """One thing to append. Nodes add up: `"Q: " + gen("a") + "\\n"`."""

    __slots__ = ()

    def __add__(self, other: Any) -> Many:
        return Many([*parts(self), *parts(other)])

    def __radd__(self, other: Any) -> Many:
        return Many([*parts(other), *parts(self)])


@dataclass(slots=True, eq=False)
class Many(Node):
    """Nodes in order."""

    nodes: list[Node]


@dataclass(slots=True, eq=False)
class Text(Node):
    value: str


@dataclass(slots=True, eq=False)
class Gen(Node):
    """Text the model writes. `settings` are fields of `SamplingParams`, over the program's own.
    thought: the variable of what it thinks before; None: that is text as well. thinks: it begins
    with a thought, though no tag says so."""

    name: str | None
    settings: dict[str, Any] = field(default_factory=dict)
    thought: str | None = None
    thinks: bool = False


@dataclass(slots=True, eq=False)
class Select(Node):
    """The most likely of `choices`, by `scorer`; no sampling."""

    name: str | None
    choices: list[str]
    scorer: str


@dataclass(slots=True, eq=False)
class Open(Node):
    """A turn of a conversation begins."""

    role: str


@dataclass(slots=True, eq=False)
class Close(Node):
    """The turn of `role` ends."""

    role: str


@dataclass(slots=True, eq=False)
class Begin(Node):
    """What follows, until `End`, becomes the variable `name`."""

    name: str


@dataclass(slots=True, eq=False)
class End(Node):
    name: str


@dataclass(slots=True, eq=False)
class Image(Node):
    """A picture for backends that see: a path, a URL, or the bytes of an image file."""

    source: str | bytes


def parts(value: Any) -> list[Node]:
    """What `value` adds: a node, several, or text."""
    if isinstance(value, Many):
        return value.nodes
    if isinstance(value, Node):
        return [value]
    if isinstance(value, str):
        return [Text(value)]
    if value is None:
        raise TypeError("None cannot be appended to a program's state")
    raise TypeError(f"{type(value).__name__} cannot be appended: append text, or call str() on it")


def turn(role: str, value: Any) -> Node:
    """A whole turn around `value`."""
    return Many([Open(role), *parts(value), Close(role)])
