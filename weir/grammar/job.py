"""Messages to and from the grammar processes.

A compiler sends its workers jobs as JSON, because JSON integers have any size. An engine sends
`Open`, `Follow` and `Close` to a guide, which answers the first two with a `Followed`, in any
order.
"""

from msgspec import Struct

from weir.core import Grammar
from weir.params import StructuredOutputs


class Job(Struct):
    key: str  # of the resulting grammar
    asked: StructuredOutputs
    backend: str
    memory: int  # bytes the worker may use


class Answer(Struct):
    grammar: Grammar | None = None
    error: str = ""  # why the request is refused


class Open(Struct, tag=True):
    """Open a matcher. taken: the tokens it has accepted, if an earlier process had opened it."""

    number: int  # of the matcher
    row: int  # of the shared memory, for its masks
    key: str  # of the grammar
    grammar: str  # in llguidance's format
    prompt: list[int]  # its last tokens
    most: int  # limit of forced initial tokens
    jumps: bool
    taken: list[int] | None = None


class Follow(Struct, tag=True):
    """Advance a matcher by a sampled token."""

    number: int
    token: int


class Close(Struct, tag=True):
    number: int


class Followed(Struct):
    """The tokens that replace the sampled one, or begin the answer. The next mask is in the row."""

    number: int
    tokens: list[int] = []
    complete: bool = False  # no token may follow, and there is no mask
    error: str = ""  # why the answer cannot go on
