"""Turns regular JSON Schemas into expressions over the JSON text.

The text has the format of Python's `json.dumps`: one space after a comma or a colon, keys in the
order of `properties`. Most of it is therefore forced and need not be sampled. Schemas that are not
regular or too large raise `Unsuitable`; llguidance serves them, or names what it cannot.
"""

import json
from collections.abc import Callable
from typing import Any

from weir.grammar import charset
from weir.grammar.automaton import build
from weir.grammar.charset import ANY
from weir.grammar.classes import BadPattern
from weir.grammar.expression import ALL_BYTES, Expressions, Moves, Node
from weir.grammar.regex import parse, search

MAX_STATES = 2_500
MAX_LENGTH = 500
"""Longer strings and larger automata go to llguidance, which does not unfold them."""

MAX_NODES = 5_000
"""Most subschemas, each counted once per reference."""

ANNOTATIONS = frozenset(
    "$schema $id id $comment title description default examples example deprecated readOnly "
    "writeOnly $defs definitions contentMediaType contentEncoding".split()
)
"""Keywords that constrain nothing."""

OF_TYPE = {
    "string": frozenset(("minLength", "maxLength", "pattern", "format")),
    "integer": frozenset(("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")),
    "number": frozenset(),
    "boolean": frozenset(),
    "null": frozenset(),
    "array": frozenset(("items", "prefixItems", "minItems", "maxItems")),
    "object": frozenset(("properties", "required", "additionalProperties")),
}
"""Supported keywords, by the type they apply to."""

KINDS: dict[type, set[str]] = {
    str: {"string"}, int: {"integer", "number"}, float: {"number"}, bool: {"boolean"},
    type(None): {"null"}, list: {"array"}, dict: {"object"},
}  # fmt: skip
"""The JSON Schema types of a Python value."""

INTEGER = r"-?(?:0|[1-9][0-9]*)"
NUMBER = INTEGER + r"(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?"
FIXED = {"number": NUMBER, "boolean": "true|false", "null": "null"}
"""Types that no supported keyword constrains, as patterns."""
FORMATS = {
    "date": r"[0-9]{4}-(?:0[1-9]|1[0-2])-(?:0[1-9]|[12][0-9]|3[01])",
    "uuid": r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}",
}
"""Formats that are regular, or as close as validators check them."""

ESCAPED = {chr(code): f"\\u{code:04x}" for code in range(0x20)} | {
    '"': '\\"', "\\": "\\\\", "\b": "\\b", "\f": "\\f", "\n": "\\n", "\r": "\\r", "\t": "\\t",
}  # fmt: skip
"""Characters that a JSON string must escape."""

UNESCAPED = ALL_BYTES & ~sum(1 << ord(character) for character in ESCAPED)
PLAIN = charset.subtract(ANY, charset.union(charset.of('"\\'), ((0, 0x1F),)))
"""Characters that a JSON string writes unescaped."""


class Unsuitable(Exception):
    """A schema is not regular or uses a keyword that is not supported here."""


def expression(expressions: Expressions, schema: Any) -> Node:
    """An expression that matches the JSON texts valid for a schema. Raises `Unsuitable`."""
    return _Writer(expressions, schema).value(schema)


class _Writer:
    def __init__(self, expressions: Expressions, root: Any):
        self.make = expressions
        self.root = root
        self.open: list[str] = []  # references being followed
        self.count = 0

    def value(self, schema: Any) -> Node:
        self.count += 1
        if self.count > MAX_NODES:
            raise Unsuitable("the schema is too large")
        if not isinstance(schema, dict):
            raise Unsuitable("any JSON value is not regular")
        own = schema is not self.root and not schema.keys().isdisjoint(("$id", "id"))
        if own and '"$ref": ' in json.dumps(schema):
            raise Unsuitable("references within a schema of its own")
        keys = schema.keys() - ANNOTATIONS
        if "$ref" in keys:
            self._only(keys, {"$ref"})
            return self._reference(schema["$ref"])
        if "const" in keys or "enum" in keys:
            self._only(keys, {"const", "enum", "type"})
            return self._among(schema)
        if "anyOf" in keys:
            self._only(keys, {"anyOf"})
            return self.make.either(map(self.value, _items(schema, "anyOf")))
        kinds = schema.get("type")
        if isinstance(kinds, list):
            return self.make.either(self._typed(schema, kind, keys) for kind in kinds)
        return self._typed(schema, kinds, keys)

    def _only(self, keys: set[str], known: set[str] | frozenset[str]) -> None:
        if unknown := sorted(keys - known):
            raise Unsuitable(f"the keyword {unknown[0]} is not regular here")

    def _typed(self, schema: dict[str, Any], kind: Any, keys: set[str]) -> Node:
        if not isinstance(kind, str) or kind not in OF_TYPE:
            raise Unsuitable("a schema without a type is not regular")
        several = isinstance(schema["type"], list)
        self._only(keys, {"type"}.union(*OF_TYPE.values() if several else [OF_TYPE[kind]]))
        if kind in FIXED:
            return parse(self.make, FIXED[kind])
        writers: dict[str, Callable[[dict[str, Any]], Node]] = {
            "string": self._string, "integer": self._integer, "array": self._array,
            "object": self._object,
        }  # fmt: skip
        return writers[kind](schema)

    def _reference(self, name: Any) -> Node:
        """Follow a reference within the document. Raises `Unsuitable` if it is recursive."""
        if not isinstance(name, str) or not name.startswith("#"):
            raise Unsuitable("a reference to another document")
        if name in self.open:
            raise Unsuitable("a recursive schema is not regular")
        target = self.root
        for part in name[1:].split("/")[1:]:
            part = part.replace("~1", "/").replace("~0", "~")
            if not isinstance(target, dict) or part not in target:
                raise Unsuitable(f"the reference {name} leads nowhere")
            target = target[part]
        self.open.append(name)
        found = self.value(target)
        self.open.pop()
        return found

    def _among(self, schema: dict[str, Any]) -> Node:
        values = [schema["const"]] if "const" in schema else _items(schema, "enum")
        if "const" in schema and "enum" in schema:
            raise Unsuitable("const beside enum")
        kinds = schema.get("type", [])
        kinds = kinds if isinstance(kinds, list) else [kinds]
        return self.make.either(
            self._literal(one) for one in values if not kinds or KINDS[type(one)] & set(kinds)
        )

    def _literal(self, value: Any) -> Node:
        if isinstance(value, float):
            raise Unsuitable("a number has many spellings")
        return self.make.literal(json.dumps(value, ensure_ascii=False))

    # -- types ---------------------------------------------------------------------------------

    def _string(self, schema: dict[str, Any]) -> Node:
        make = self.make
        least, most = _count(schema, "minLength") or 0, _count(schema, "maxLength")
        if max(least, most or 0) > MAX_LENGTH:
            raise Unsuitable("a long string")
        parts = []
        if "pattern" in schema:
            parts.append(self._matching(schema["pattern"]))
        if "format" in schema:
            if schema["format"] not in FORMATS:
                raise Unsuitable(f"the format {schema['format']} is not regular here")
            parts.append(parse(make, FORMATS[schema["format"]]))
        if least or most is not None or not parts:
            parts.append(make.repeat(self._character(loose=not parts), least, most))
        quote = make.literal('"')
        return make.sequence([quote, make.both(parts), quote])

    def _character(self, loose: bool) -> Node:
        """One character of a string as written. loose: with all escapes that JSON allows."""
        codes = r"\\/|\\u[0-9a-fA-F]{4}" if loose else r"\\u00[01][0-9a-f]"
        escaped = parse(self.make, r'\\["\\bfnrt]|' + codes)
        return self.make.either([self.make.chars(PLAIN), escaped])

    def _matching(self, pattern: str) -> Node:
        """The strings in which `pattern` is found, as written: its automaton, with each character
        that must be escaped replaced by its one escape."""
        make, inner = self.make, Expressions()
        try:
            automaton = build(inner, search(inner, pattern), MAX_STATES)
        except BadPattern as error:
            raise Unsuitable(f"the pattern cannot be used: {error}") from None

        def state(number: int) -> Node:
            return make.state(machine, number, accepting=bool(automaton.accepting[number]))

        def moves(number: int) -> Moves:
            escapes = []
            for character, escape in ESCAPED.items():
                if after := automaton.run(character.encode(), number):
                    escapes.append(make.concat(make.literal(escape[1:]), state(after)))
            found = {mask & UNESCAPED: state(after) for after, mask in automaton.moves(number)}
            backslash = make.either(escapes)
            return tuple(
                (mask, node)
                for mask, node in (*found.items(), (1 << 0x5C, backslash))
                if mask and node is not make.nothing
            )

        machine = make.machine(moves)
        return state(automaton.start)

    def _integer(self, schema: dict[str, Any]) -> Node:
        bounds = {name: schema[name] for name in ("minimum", "maximum") if name in schema}
        low, high = bounds.get("minimum"), bounds.get("maximum")
        if "exclusiveMinimum" in schema or "exclusiveMaximum" in schema:
            raise Unsuitable("exclusive bounds are not regular here")
        if not bounds:
            return parse(self.make, INTEGER)
        if not all(type(one) is int for one in bounds.values()):
            raise Unsuitable("bounds that are no integers")
        return self._between(low, high)

    def _between(self, low: int | None, high: int | None) -> Node:
        """Integers from `low` to `high`; None: unbounded."""
        parts = []
        if low is None or low < 0:
            most = None if low is None else -low
            below = self._naturals(1 if high is None or high >= 0 else -high, most)
            parts.append(self.make.concat(self.make.literal("-"), below))
        if high is None or high >= 0:
            parts.append(self._naturals(max(0, low or 0), high))
        return self.make.either(parts)

    def _naturals(self, low: int, high: int | None) -> Node:
        within = [parse(self.make, "0|[1-9][0-9]*"), self._from(low)]
        if high is not None:
            within.append(self.make.complement(self._from(high + 1)))
        return self.make.both(within)

    def _from(self, low: int) -> Node:
        """Digits of a number of at least `low`, provided that they do not begin with a zero."""
        make, digits, text = self.make, "0123456789", str(low)
        ways = [make.literal(text), make.repeat(make.chars(charset.DIGITS), len(text) + 1, None)]
        for at, one in enumerate(text):
            rest = len(text) - at - 1
            above = make.chars(charset.of(digits[int(one) + 1 :]))
            more = make.repeat(make.chars(charset.DIGITS), rest, rest)
            ways.append(make.sequence([make.literal(text[:at]), above, more]))
        return make.either(ways)

    def _array(self, schema: dict[str, Any]) -> Node:
        make, comma = self.make, self.make.literal(", ")
        if "prefixItems" in schema or "items" not in schema:
            raise Unsuitable("items of any kind are not regular")
        item = self.value(schema["items"])
        least, most = _count(schema, "minItems") or 0, _count(schema, "maxItems")
        most_more = None if most is None else most - 1
        more = make.repeat(make.concat(comma, item), max(0, least - 1), most_more)
        inside = make.concat(item, more)
        if least == 0:
            inside = make.either([inside, make.empty])
        return make.sequence([make.literal("["), inside, make.literal("]")])

    def _object(self, schema: dict[str, Any]) -> Node:
        make, comma = self.make, self.make.literal(", ")
        if schema.get("additionalProperties") is not False:
            raise Unsuitable("additional properties of any kind are not regular")
        properties, required = schema.get("properties", {}), set(_items(schema, "required"))
        if unknown := required - properties.keys():
            raise Unsuitable(f"{sorted(unknown)[0]} is required but not a property")
        first = after = make.empty  # the remaining members after none, and after at least one
        for name, inner in reversed(properties.items()):
            if inner is False and name not in required:
                continue
            member = make.sequence([self._literal(name), make.literal(": "), self.value(inner)])
            with_comma = make.sequence([comma, member, after])
            alone = make.concat(member, after)
            if name in required:
                first, after = alone, with_comma
            else:
                first, after = make.either([alone, first]), make.either([with_comma, after])
        return make.sequence([make.literal("{"), first, make.literal("}")])


def _items(schema: dict[str, Any], name: str) -> list[Any]:
    """A keyword's list; empty if it is missing."""
    found = schema.get(name, [])
    if not isinstance(found, list):
        raise Unsuitable(f"{name} must be an array")
    return found


def _count(schema: dict[str, Any], name: str) -> int | None:
    """A keyword's whole number; None if it is missing."""
    found = schema.get(name, 0)
    if type(found) not in (int, float) or found < 0 or found % 1:
        raise Unsuitable(f"{name} must be a count")
    return int(found) if name in schema else None
