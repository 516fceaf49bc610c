"""What this process and those beside it tell each other.

A compiler and its workers: jobs, as JSON, whose integers have any size. An engine and the process
that follows grammars for it: one answer, a `Followed`, to each `Follow`, in whatever order.
"""

from msgspec import Struct

from weir.core import Grammar
from weir.params import StructuredOutputs


class Job(Struct):
    key: str  # of the grammar that comes of it
    asked: StructuredOutputs
    backend: str
    memory: int  # bytes this process may take


class Answer(Struct):
    grammar: Grammar | None = None
    error: str = ""  # why the request is refused


class Open(Struct, tag=True):
    """A new matcher. taken: what it has taken in already, if another process had it before."""

    number: int  # of the matcher
    row: int  # of the shared memory, for its masks
    key: str  # of the grammar
    grammar: str  # in llguidance's words
    prompt: list[int]  # the end of it
    most: int  # tokens with which it may begin
    jumps: bool
    taken: list[int] | None = None


class Follow(Struct, tag=True):
    """A token that was sampled."""

    number: int
    token: int


class Close(Struct, tag=True):
    number: int


class Followed(Struct):
    """What stands there instead, or at the beginning. The mask after it is in the matcher's row."""

    number: int
    tokens: list[int] = []
    complete: bool = False  # no token may follow, and there is no mask
    error: str = ""  # why the answer cannot go on
