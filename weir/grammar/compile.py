"""Compiles a caller's grammar for one of two engines, or refuses it with the reason.

Runs in a worker process that may be killed at any time; see `compiler`.
"""

import json
from functools import cache
from typing import Any

from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper
from llguidance.gbnf_to_lark import any_to_lark

from weir.core import Grammar
from weir.errors import BadRequest
from weir.grammar import schema
from weir.grammar.automaton import MAX_STATES, Automaton, TooComplex, build
from weir.grammar.classes import BadPattern
from weir.grammar.expression import Expressions
from weir.grammar.regex import parse
from weir.grammar.schema import Unsuitable, expression
from weir.grammar.tokens import Tokens, Wrapped
from weir.params import StructuredOutputs

JSON_OPTIONS: Any = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""The spacing of JSON in both engines and in Python: fixed, so the model need not sample it."""

NOTHING = "nothing matches this: no answer is possible"


def compile(asked: StructuredOutputs, backend: str, key: str) -> Grammar:
    """Raises `BadRequest`, which names the keyword or construct that is not supported.

    backend: "automaton", "guidance", or "auto": an automaton if possible, else llguidance."""
    reason = "it was turned off with --grammar-backend"
    if backend != "guidance":
        try:
            return Grammar(key, "automaton", automaton(asked).encode())
        except (TooComplex, Unsuitable) as error:
            reason = str(error)
        except BadPattern as error:
            raise BadRequest(f"the pattern cannot be used: {error}") from None
    if backend == "automaton":
        raise BadRequest(f"no automaton can hold this: {reason}")
    return Grammar(key, "guidance", guidance(asked).encode())


def automaton(asked: StructuredOutputs) -> Automaton:
    """Raises `BadPattern`, `TooComplex`, or `Unsuitable` for a grammar that is not regular."""
    expressions = Expressions()
    if asked.regex is not None:
        wanted = parse(expressions, asked.regex)
    elif asked.choice is not None:
        wanted = expressions.either(map(expressions.literal, asked.choice))
    elif asked.schema is not None:
        try:
            wanted = expression(expressions, asked.schema)
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            raise Unsuitable(f"the schema is malformed: {error!r}") from None
    else:
        raise Unsuitable("a grammar is not regular")
    limit = schema.MAX_STATES if asked.schema is not None else MAX_STATES
    built = build(expressions, wanted, limit)
    if built.states == 1:
        raise BadRequest(NOTHING)
    return built


def guidance(asked: StructuredOutputs) -> str:
    """The grammar in llguidance's format, checked by opening it with llguidance."""
    if asked.regex is not None:
        grammar = LLMatcher.grammar_from_regex(asked.regex)
    elif asked.choice is not None:
        choices = " | ".join(json.dumps(choice, ensure_ascii=False) for choice in asked.choice)
        grammar = LLMatcher.grammar_from_lark(f"start: {choices}")
    elif asked.schema is not None:
        try:
            text = json.dumps(asked.schema)
            grammar = LLMatcher.grammar_from_json_schema(text, overrides=JSON_OPTIONS)
        except ValueError as error:
            raise BadRequest(f"the schema cannot be used: {error}") from None
    else:
        assert asked.grammar is not None
        try:
            grammar = LLMatcher.grammar_from_lark(any_to_lark(asked.grammar))
        except Exception as error:  # it raises bare ones too
            raise BadRequest(f"the grammar cannot be read: {error}") from None
    matcher = LLMatcher(bytewise(), grammar, log_level=0)
    matcher.compute_bitmask()
    if matcher.is_error():
        reason = " ".join(matcher.get_error().partition("\n<state>")[0].split())[:1000]
        stuck = reason == "NoExtensionBias"  # before the first byte
        raise BadRequest(NOTHING if stuck else f"this cannot be held to: {reason}")
    return grammar


@cache
def bytewise() -> LLTokenizer:
    """A tokenizer with one token per byte, which suffices to check a grammar."""
    pieces = [*(bytes([byte]) for byte in range(256)), b""]
    tokens = Tokens(pieces, [256], lambda text: list(text.encode()))
    return LLTokenizer(TokenizerWrapper(Wrapped(tokens, 257)))
