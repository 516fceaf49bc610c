"""Patterns against Python's own engine: random ones, those of the data, and what is refused."""

import gzip
import json
import os
import re
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.grammar.hostile import FRAGMENTS
from weir.grammar.automaton import Automaton, TooComplex, build
from weir.grammar.classes import BadPattern
from weir.grammar.expression import Expressions
from weir.grammar.regex import parse, search

CHARACTERS = "ab1_- é€😀\n"
TEXTS = st.text(CHARACTERS, max_size=8)

ATOMS = st.one_of(
    st.sampled_from(
        [*"ab1_é€😀", r"\-", r"\n", ".", r"\d", r"\w", r"\S", r"\W", r"\x61", r"\u00e9"]
    ),
    st.sampled_from(
        ["[ab]", "[^a]", r"[^\d_]", "[a-z1]", "[é-€]", r"[\w-]", "(?i:A)", "()", "(?s:.)"]
    ),
)


def extend(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    bounds = st.sampled_from(["*", "+", "?", "{2}", "{1,2}", "{0,}", "{,2}", "*?", "{2,3}?"])
    return st.one_of(
        st.lists(inner, min_size=1, max_size=3).map("".join),
        st.lists(inner, min_size=2, max_size=3).map("|".join).map("(?:{})".format),
        st.tuples(inner, bounds).map(lambda pair: f"(?:{pair[0]}){pair[1]}"),
        inner.map("({})".format),
    )


PATTERNS = st.recursive(ATOMS, extend, max_leaves=8)


def automaton(pattern: str) -> Automaton:
    expressions = Expressions()
    return build(expressions, parse(expressions, pattern))


def finder(pattern: str) -> Automaton:
    expressions = Expressions()
    return build(expressions, search(expressions, pattern))


@given(PATTERNS, st.lists(TEXTS, min_size=5, max_size=15))
@settings(max_examples=150, deadline=None)
@example("(?:a|é)*1{2,3}", ["aéa11", "111", "a1"])
def test_matches_what_python_matches(pattern: str, texts: list[str]):
    ours, theirs = automaton(pattern), re.compile(pattern, re.ASCII)
    every, anywhere = automaton("(?u)" + pattern), re.compile(pattern)
    for text in texts:
        assert ours.matches(text.encode()) == bool(theirs.fullmatch(text)), text
        assert every.matches(text.encode()) == bool(anywhere.fullmatch(text)), text


LOOKING = st.lists(
    st.sampled_from(["a", "b1", " ", "-", r"\b", r"\B", "^", "$", "(?=a)", "(?!b)", "(?=.*1)", ".*",
                     "(?:a|^)", r"(?:\b|b)", "(?:b$|a)", "(?:a|(?!b1).)"]),
    min_size=1, max_size=5,
).map("".join)  # fmt: skip


@given(LOOKING, st.lists(st.text("ab1 -", min_size=1, max_size=6), min_size=5, max_size=15))
@settings(max_examples=150, deadline=None)
def test_assertions_and_lookaheads(pattern: str, texts: list[str]):
    """No empty text: before 3.14 Python held that \\B cannot match one."""
    ours, found, theirs = automaton(pattern), finder(pattern), re.compile(pattern)
    for text in texts:
        assert ours.matches(text.encode()) == bool(theirs.fullmatch(text)), text
        assert found.matches(text.encode()) == bool(theirs.search(text)), text


@given(PATTERNS, TEXTS)
@settings(max_examples=100, deadline=None)
def test_an_automaton_survives_its_encoding(pattern: str, text: str):
    ours = automaton(pattern)
    again = Automaton.decode(ours.encode())
    assert (again.table == ours.table).all() and (again.classes == ours.classes).all()
    assert again.matches(text.encode()) == ours.matches(text.encode())


@given(PATTERNS)
@settings(max_examples=100, deadline=None)
def test_forced_bytes_are_the_only_ones(pattern: str):
    ours = automaton(pattern)
    for state in range(1, ours.states):
        successors = {byte for byte in range(256) if ours.run(bytes([byte]), state)}
        assert successors or ours.accepting[state], "a state that leads nowhere"
        forced = int(ours.forced[state])
        assert (forced >= 0) == (len(successors) == 1 and not ours.accepting[state])
        assert forced < 0 or forced in successors
        assert ours.final[state] == (bool(ours.accepting[state]) and not successors)


@given(PATTERNS)
@settings(max_examples=100, deadline=None)
def test_an_automaton_is_minimal(pattern: str):
    """No two states match the same texts (Moore's algorithm over the tables)."""
    ours = automaton(pattern)
    block = [*map(bool, ours.accepting)]
    while True:
        rows = [(block[s], *(block[t] for t in ours.table[s])) for s in range(ours.states)]
        names = {row: n for n, row in enumerate(dict.fromkeys(rows))}
        refined = [names[row] for row in rows]
        if len(set(refined)) == len(set(block)):
            break
        block = refined
    assert len(set(block)) == ours.states


def test_a_chain_is_followed_to_its_end_but_not_past_a_match():
    ours = automaton(r"name: (Ann|Anna)")
    text = ours.force(ours.start, 99)
    state = ours.run(text)
    assert text == b"name: Ann" and ours.accepting[state]
    assert ours.force(state, 99) == b"" and ours.force(ours.start, 3) == text[:3]


@pytest.mark.parametrize(
    ("pattern", "why"),
    [
        (r"(a)\1", "backreference"),
        ("(?P<x>a)(?P=x)", "backreference"),
        ("(?<=a)b", "lookbehind"),
        ("(?<!a)b", "lookbehind"),
        ("(?>a)b", "atomic"),
        ("a++", "possessive"),
        ("(a)(?(1)b|c)", "conditional"),
        ("(?:(?=a).)*", "repeated"),
        ("(?m)^a", "flag m"),
        (r"\p{Klingon}", "Klingon"),
        ("(a", r"\("),
        ("a)", r"\)"),
        ("[a", r"\["),
        ("*a", "nothing to repeat"),
        ("a**", "follows another"),
        ("a{3,2}", "wrong way"),
        ("a{99999}", "10000"),
        ("[z-a]", "wrong way"),
        ("a\\", "backslash"),
        (r"\q", r"\\q"),
        ("(" * 200 + ")" * 200, "nested"),
        ("a" * 70_000, "65536"),
    ],
)
def test_what_is_refused_is_named(pattern: str, why: str):
    with pytest.raises(BadPattern, match=why):
        automaton(pattern)


@pytest.mark.parametrize("pattern", ["(a|b)*a(a|b){20}", "[ab]{9999}c|[bc]{9999}", ".{5000}x"])
def test_what_explodes_is_given_up(pattern: str):
    with pytest.raises(TooComplex, match="20000 states"):
        automaton(pattern)


def test_classes_are_ascii_unless_told():
    assert automaton(r"(?u)\d\w").matches("٣é".encode())
    assert not automaton(r"\d\w").matches("٣é".encode())
    assert not finder(r"\d|é\w").matches("٣éé".encode())
    assert finder(r"^\s$").matches("\u2003".encode())
    assert not automaton(r"\s").matches("\u2003".encode())
    assert finder(r"^\u00e9$").matches("é".encode())
    assert finder(r"\uD83D\uDE00").matches("x😀".encode())


DATA = Path(os.environ.get("WEIR_DATA", "")) / "constrained"


def rows(name: str) -> list[dict]:
    if not (DATA / name).is_file():
        pytest.skip("WEIR_DATA does not hold the patterns")
    with gzip.open(DATA / name, "rt") as file:
        return [json.loads(line) for line in file]


def test_patterns_of_schemas_find_what_python_finds():
    accepted = 0
    patterns = [r for r in rows("regexes.jsonl.gz") if r["origin"] == "json-schema"][:600]
    for row in patterns:
        try:
            found = finder(row["pattern"])
        except (BadPattern, TooComplex):
            continue
        accepted += 1
        for key, expected in (("search_match", True), ("search_nomatch", False)):
            for text in row.get(key, ()):
                assert found.matches(text.encode()) == expected, (row["pattern"], text)
    assert accepted >= 0.97 * len(patterns)


@given(st.lists(st.sampled_from(FRAGMENTS), max_size=25).map("".join))
@settings(max_examples=300, deadline=None)
def test_any_text_is_read_or_refused_by_name(pattern: str):
    expressions = Expressions()
    try:
        read = [parse(expressions, pattern), search(expressions, pattern)]
        for one in read:
            build(expressions, one, max_states=100)
    except BadPattern as error:
        assert str(error)
    except TooComplex:
        pass
