"""JSON Schemas that are regular, as expressions."""

from __future__ import annotations

from typing import Any

from weir.grammar.expression import Expressions, Node


class Unsuitable(Exception):
    """A schema that is not regular, or uses a keyword that no expression is made of here."""


def expression(expressions: Expressions, schema: Any) -> Node:
    raise Unsuitable("not yet")
