"""The nodes that a program may append to its state: plain data, which streams run in order."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

ROLES = "system", "user", "assistant"


class Node:
    """One thing to append. Nodes and text can be added: `"Q: " + gen("a") + "\\n"`."""

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
    """Text that the model writes. settings: fields of `SamplingParams` that override the program's.
    thought: the variable for the reasoning before the answer; None: that is text like the rest.
    thinks: the text begins with reasoning, although no tag says so."""

    name: str | None
    settings: dict[str, Any] = field(default_factory=dict)
    thought: str | None = None
    thinks: bool = False


@dataclass(slots=True, eq=False)
class Select(Node):
    """The choice that `scorer` rates highest. Nothing is sampled."""

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
    """An image, for backends that support it: a path, a URL, or the bytes of an image file."""

    source: str | bytes


def parts(value: Any) -> list[Node]:
    """The nodes of `value`: a node, several, or text. Raises TypeError for anything else."""
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
    """A whole turn with `value` as its content."""
    return Many([Open(role), *parts(value), Close(role)])
