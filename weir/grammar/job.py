"""What a compiler and its workers tell each other: jobs as JSON, whose integers have any size."""

from __future__ import annotations

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
