"""Schemas that become automata: their instances, and what is left to llguidance."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.grammar import hostile
from weir.errors import BadRequest
from weir.grammar.automaton import Automaton, TooComplex
from weir.grammar.classes import BadPattern
from weir.grammar.compile import automaton, compile
from weir.grammar.schema import Unsuitable
from weir.params import StructuredOutputs

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 2, "maxLength": 9, "pattern": "^[^0-9]+$"},
        "age": {"type": "integer", "minimum": -7, "maximum": 120},
        "tags": {"type": "array", "items": {"enum": ["a", 'b"', None, 3]}, "maxItems": 2},
        "note": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/text"}]},
    },
    "required": ["name", "tags"],
    "additionalProperties": False,
    "$defs": {"text": {"type": "string"}},
}


def kind(schema: object) -> str:
    return compile(StructuredOutputs(json=schema), "auto", "key").kind


def matches(schema: object, value: object) -> bool:
    grammar = compile(StructuredOutputs(json=schema), "automaton", "key")
    return Automaton.decode(grammar.data).matches(json.dumps(value, ensure_ascii=False).encode())


@pytest.mark.parametrize(
    ("value", "valid"),
    [
        ({"name": "Ann", "age": 3, "tags": ["a", None], "note": 'x"\\\n\té😀'}, True),
        ({"name": 'A"\\\n', "tags": []}, True),
        ({"name": "An", "age": -7, "tags": ['b"', 3], "note": None}, True),
        ({"name": "A", "tags": []}, False),
        ({"name": "Annnnnnnnn", "tags": []}, False),
        ({"name": "Ann1", "tags": []}, False),
        ({"name": "Ann", "age": 121, "tags": []}, False),
        ({"name": "Ann", "age": 1.5, "tags": []}, False),
        ({"name": "Ann", "tags": ["a", "a", "a"]}, False),
        ({"name": "Ann", "tags": ["b"]}, False),
        ({"name": "Ann"}, False),
        ({"name": "Ann", "tags": [], "more": 1}, False),
    ],
)
def test_instances(value: object, valid: bool):
    assert kind(PERSON) == "automaton"
    assert matches(PERSON, value) == valid


@given(st.integers(-2000, 2000), st.integers(-2000, 2000), st.lists(st.integers(-3000, 3000)))
@settings(max_examples=60, deadline=None)
def test_bounds_of_integers(a: int, b: int, values: list[int]):
    low, high = min(a, b), max(a, b)
    for schema, fits in (
        ({"type": "integer", "minimum": low, "maximum": high}, lambda n: low <= n <= high),
        ({"type": "integer", "minimum": low}, lambda n: low <= n),
        ({"type": "integer", "maximum": high}, lambda n: n <= high),
    ):
        grammar = compile(StructuredOutputs(json=schema), "automaton", "key")
        automaton = Automaton.decode(grammar.data)
        for value in [*values, low - 1, low, high, high + 1, 0]:
            assert automaton.matches(str(value).encode()) == fits(value), (schema, value)


@given(
    st.sets(st.sampled_from("abcd")),
    st.sets(st.sampled_from("abcd")),
    st.sets(st.sampled_from("abcd")),
)
def test_optional_and_required_properties(declared: set[str], required: set[str], given: set[str]):
    declared |= required
    schema = {
        "type": "object",
        "properties": {name: {"type": "boolean"} for name in sorted(declared)},
        "required": sorted(required),
        "additionalProperties": False,
    }
    value = dict.fromkeys(sorted(given), True)
    assert matches(schema, value) == (required <= given <= declared)


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object"},
        {"type": "array", "items": {"$ref": "#"}},
        {"type": "string", "format": "date-time"},
        {"type": "string", "maxLength": 100_000},
        {"allOf": [{"type": "string"}]},
        {"type": "number", "minimum": 3},
    ],
)
def test_what_is_not_regular_is_left_to_llguidance(schema: object):
    assert kind(schema) == "guidance"
    with pytest.raises(BadRequest, match="no automaton"):
        compile(StructuredOutputs(json=schema), "automaton", "key")


@pytest.mark.parametrize(
    ("schema", "name"),
    [
        ({"not": {"type": "string"}}, "not"),
        ({"type": "array", "items": {"type": "string"}, "uniqueItems": True}, "uniqueItems"),
        ({"type": "string", "format": "klingon"}, "klingon"),
        ({"type": "object", "properties": 5}, "properties"),
        ({"type": "strange"}, "strange"),
        ({"$ref": "other.json"}, "other.json"),
        ({"type": "string", "pattern": "(?<=a)b"}, "regex parse error"),
    ],
)
def test_a_keyword_that_nobody_holds_to_is_named(schema: object, name: str):
    with pytest.raises(BadRequest, match=name):
        kind(schema)


def test_references_of_a_schema_within_a_schema_are_its_own():
    inner = {"$id": "http://a/b", "$defs": {"x": {"type": "integer"}}, "$ref": "#/$defs/x"}
    schema = {"type": "array", "items": inner, "$defs": {"x": {"type": "null"}}}
    with pytest.raises(Unsuitable, match="of its own"):
        automaton(StructuredOutputs(json=schema))
    inner = {"$id": "http://a/b", "type": "integer"}
    assert kind({"type": "array", "items": inner}) == "automaton"


@pytest.mark.parametrize("bounds", [(0, 0), (0, 2), (1, 2), (2, 2), (3, None)])
def test_bounds_of_arrays(bounds: tuple[int, int | None]):
    least, most = bounds
    schema: dict = {"type": "array", "items": {"type": "null"}, "minItems": least}
    schema |= {} if most is None else {"maxItems": most}
    for size in range(6):
        assert matches(schema, [None] * size) == (least <= size <= (size if most is None else most))


def test_what_nothing_matches_is_refused():
    empty = {"type": "array", "items": {"type": "null"}, "minItems": 1, "maxItems": 0}
    with pytest.raises(BadRequest, match="no answer is possible"):
        compile(StructuredOutputs(json=empty), "auto", "key")
    with pytest.raises(BadRequest, match="nothing matches"):
        kind({"type": "string", "minLength": 3, "maxLength": 2})
    with pytest.raises(BadRequest, match="nothing matches"):
        compile(StructuredOutputs(regex="(?!a)a"), "auto", "key")


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"json": {"enum": "abc"}}, "enum must be an array"),
        ({"json": {"enum": {"a": 1}}}, "enum must be an array"),
        ({"json": {"anyOf": {}}}, "anyOf must be an array"),
        ({"json": {"type": "string", "minLength": -1}}, "'minLength', got -1"),
        ({"json": {"type": "string", "maxLength": 1.5}}, "'maxLength', got 1.5"),
        ({"json": {"type": "string", "maxLength": None}}, "'maxLength', got null"),
        ({"json": {"type": "array", "items": {"type": "null"}, "maxItems": -1}}, "'maxItems'"),
        ({"json": {"type": "integer", "minimum": None}}, "'minimum', got null"),
        (
            {
                "json": {
                    "type": "object",
                    "properties": {"a": {"type": "null"}},
                    "required": "a",
                    "additionalProperties": False,
                }
            },
            "'required', got \"a\"",
        ),
        ({"json": {"type": "string", "pattern": "("}}, "unclosed group"),
        ({"json": {"$ref": "#"}}, "nothing matches"),
        ({"grammar": 'start: start "a"'}, "nothing matches"),
        ({"grammar": "start: /(/"}, "unclosed group"),
        ({"grammar": ""}, "cannot be read: No 'root' rule found"),
        ({"grammar": "root ::= foo"}, "cannot be read: Rule 'foo' not found"),
    ],
)
def test_what_is_malformed_is_refused_with_the_reason(asked: dict, says: str):
    with pytest.raises(BadRequest) as error:
        compile(StructuredOutputs(**asked), "auto", "key")
    assert says in str(error.value) and "\n" not in str(error.value)


def test_a_whole_number_may_be_written_with_a_point():
    schema = {"type": "string", "minLength": 1.0, "maxLength": 2.0}
    assert matches(schema, "ab") and not matches(schema, "abc") and not matches(schema, "")


VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(max_size=4),
    st.sampled_from(["string", "integer", "object", "array", "#", "#/$defs/a", "^a+$", "date"]),
)  # fmt: skip
SCHEMAS = st.recursive(
    VALUES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.sampled_from(hostile.KEYWORDS), inner, max_size=5),
        st.dictionaries(st.sampled_from(["a", "$ref", "type"]), inner, max_size=3),
    ),
    max_leaves=20,
)


@given(st.dictionaries(st.sampled_from(hostile.KEYWORDS), SCHEMAS, max_size=5))
@settings(max_examples=300, deadline=None)
def test_any_schema_is_read_or_refused_by_name(schema: dict):
    try:
        automaton(StructuredOutputs(json=schema))
    except (BadPattern, BadRequest, Unsuitable) as error:
        assert str(error)
    except TooComplex:
        pass
