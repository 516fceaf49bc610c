"""Finds what a program will do by running its body with abstract values and no backend.

This works if the program's control flow does not depend on values: an abstract value can be
appended or formatted into text, and raises on any other use.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from inspect import Parameter, iscoroutine, signature
from typing import Any, NoReturn, cast

from weir.lang import ir
from weir.lang.backend.base import Backend
from weir.lang.state import State
from weir.lang.stream import Fork, Join, ProgramError, Stream, Value

_MARK = re.compile("\ue000(\\d+)\ue001")


class Abstract(ir.Node):
    """A value that is not known yet: an argument, or a variable that the program sets."""

    __slots__ = ("graph", "name", "stream")

    def __init__(self, graph: Graph, name: str, stream: int = -1):
        self.graph = graph
        self.name = name
        self.stream = stream  # the one that sets it; -1: an argument

    def __str__(self) -> str:
        """A mark, which becomes this value again when the text around it is appended."""
        self.graph.formatted.append(self)
        return f"\ue000{len(self.graph.formatted) - 1}\ue001"

    def __format__(self, how: str) -> str:
        return str(self) if how in ("", "s") else self._refuse()

    def _refuse(self, *_: Any) -> NoReturn:
        raise TypeError(
            f"{self.name!r} has no value while a program is traced: it can be appended, "
            "but not looked at"
        )

    __bool__ = __len__ = __iter__ = __int__ = __float__ = _refuse
    __eq__ = __lt__ = __le__ = __gt__ = __ge__ = __contains__ = __getitem__ = __index__ = _refuse
    __hash__ = object.__hash__

    def __repr__(self) -> str:
        return f"<{self.name}>"


@dataclass(slots=True, eq=False)
class Step:
    """A node of the graph. It follows the previous step of its stream."""

    stream: int
    node: ir.Node
    line: str


@dataclass(slots=True, eq=False)
class Graph:
    """All that a program appends, in the order of execution. Stream 0 is the program's own."""

    steps: list[Step] = field(default_factory=list)
    streams: int = 1
    formatted: list[Abstract] = field(default_factory=list)

    def __str__(self) -> str:
        return "\n".join(f"{s.stream:>3}  {_label(s.node):<60} {s.line}" for s in self.steps)

    def dot(self) -> str:
        """The graph in Graphviz's language. Solid edges: order; dashed: the use of a value."""
        lines = ["digraph program {", "  node [shape=box, fontname=monospace];"]
        last: dict[int, int] = {}  # stream → its latest step
        made: dict[tuple[int, str], int] = {}  # stream, name → the step that sets it
        for at, step in enumerate(self.steps):
            label = _label(step.node).replace("\\", "\\\\").replace('"', '\\"')
            lines.append(f'  n{at} [label="{label}"];')
            if step.stream in last:
                lines.append(f"  n{last[step.stream]} -> n{at};")
            last[step.stream] = at
            node = step.node
            if isinstance(node, ir.Gen | ir.Select | ir.End) and node.name is not None:
                made[step.stream, node.name] = at
            elif isinstance(node, Fork):
                last |= {child.number: at for child in _recorders(node.children)}
            elif isinstance(node, Join):
                ends = (last[child.number] for child in _recorders(node.children))
                lines += [f"  n{end} -> n{at};" for end in ends]
            elif isinstance(node, Abstract) and (node.stream, node.name) in made:
                lines.append(f"  n{made[node.stream, node.name]} -> n{at} [style=dashed];")
        return "\n".join([*lines, "}"])


class Recorder(Stream):
    """Records what is appended and runs nothing."""

    def __init__(self, graph: Graph, number: int = 0):
        super().__init__(cast(Backend, None), {})
        self.graph = graph
        self.number = number

    def push(self, node: ir.Node, line: str = "", fill: dict[str, Value] | None = None) -> None:
        for part in self._taken_apart(node):
            self.graph.steps.append(Step(self.number, part, line))

    def _taken_apart(self, node: ir.Node) -> Iterator[ir.Node]:
        """Split text with marks into text and abstract values."""
        if not isinstance(node, ir.Text):
            yield node
            return
        for at, piece in enumerate(_MARK.split(node.value)):
            if at % 2:
                yield self.graph.formatted[int(piece)]
            elif piece:
                yield ir.Text(piece)

    def branch(self) -> Recorder:
        self.graph.streams += 1
        return Recorder(self.graph, self.graph.streams - 1)


class Tracer(State):
    """A state without values."""

    stream: Recorder

    def __getitem__(self, name: str) -> Any:
        self._value(name)
        return Abstract(self.stream.graph, name, self.stream.number)

    async def get(self, name: str) -> Any:
        return self[name]

    def sync(self) -> None:
        raise TypeError("a program that waits for its text cannot be traced")

    def reach(self, last: bool = False) -> Future[None]:
        return Future()


def graph(body: Callable[..., Any], arguments: Mapping[str, Any]) -> Graph:
    """All that `body` appends. Raises ProgramError if its control flow depends on a value."""
    found = Graph()
    try:
        _record(found, body, arguments)
    except Exception as error:
        raise ProgramError(f"{body.__name__} cannot be traced: {error}") from error
    return found


def _record(graph: Graph, body: Callable[..., Any], arguments: Mapping[str, Any]) -> None:
    """Run a body with abstract values for missing arguments. A coroutine must never wait."""
    _, *others = signature(body).parameters.values()
    kinds = (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)
    free = {p.name: Abstract(graph, p.name) for p in others if p.kind not in kinds}
    returned = body(Tracer(Recorder(graph)), **free | dict(arguments))
    if iscoroutine(returned):
        try:
            returned.send(None)
        except StopIteration:
            return
        finally:
            returned.close()
        raise TypeError("a program that waits for something else cannot be traced")


def _recorders(children: list[Stream]) -> list[Recorder]:
    return cast(list[Recorder], children)


def _label(node: ir.Node) -> str:
    match node:
        case ir.Text(value=text):
            about = repr(text if len(text) < 48 else text[:45] + "...")
        case ir.Open(role=about) | ir.Close(role=about):
            pass
        case Fork(children=children) | Join(children=children):
            about = ", ".join(str(child.number) for child in _recorders(children))
        case Abstract(name=name, stream=stream):
            return f"argument {name}" if stream < 0 else f"value {name} of {stream}"
        case _:
            about = getattr(node, "name", None) or ""
    return f"{type(node).__name__.lower()} {about}".rstrip()
