"""How much of the data grammars hold, and what they cost: python bench/grammar.py [--schemas N]

Needs WEIR_DATA. llguidance runs beside it on the same schemas, texts and vocabulary, and so do the
masks of xgrammar where it is installed.
"""

import argparse
import collections
import json
import random
import sys
import threading
import time
from importlib.metadata import version

import numpy as np
from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper

from weir import connect
from weir.bench.named import data_folder
from weir.config import load
from weir.errors import BadRequest
from weir.grammar.automaton import Automaton, TooComplex, build
from weir.grammar.classes import BadPattern
from weir.grammar.compile import bytewise, compile, guidance
from weir.grammar.expression import Expressions
from weir.grammar.regex import search
from weir.grammar.tokens import Tokens, Wrapped
from weir.grammar.vocabulary import Masks, Vocabulary
from weir.ops import native
from weir.params import StructuredOutputs
from weir.rows import read_rows
from weir.text import Text

try:
    import xgrammar
except ImportError:
    xgrammar = None

BYTES = bytewise()
IRREGULAR = ("backreference", "lookbehind", "conditional", "recursion", "atomic", "possessive")
"""Refused by name: not regular, or of a meaning that depends on how one searches."""


def rows(name: str) -> list[dict]:
    return list(read_rows(data_folder() / "constrained" / name))


def percentiles(seconds: list[float], unit: float) -> str:
    found = np.percentile(np.array(seconds or [0.0]) / unit, [50, 99, 100])
    return " / ".join(f"{value:.3g}" for value in found)


def patterns() -> None:
    counts: collections.Counter[str] = collections.Counter()
    for row in rows("regexes.jsonl.gz"):
        expressions = Expressions()
        try:
            found = build(expressions, search(expressions, row["pattern"]))
        except BadPattern as error:
            irregular = any(word in str(error) for word in IRREGULAR)
            broken = not row["python_re_ok"]
            counts["not regular" if irregular else "broken" if broken else "refused"] += 1
            continue
        except TooComplex:
            counts["too complex"] += 1
            continue
        counts["accepted"] += 1
        for key, expected in (("search_match", True), ("search_nomatch", False)):
            for text in row.get(key, ()):
                right = found.matches(text.encode("utf-8", "surrogatepass")) == expected
                counts["texts right" if right else "texts wrong"] += 1
    print("patterns", dict(counts))


def schemas(count: int, name: str) -> list[tuple[dict, str]]:
    """Compare with llguidance alone; returns instances of schemas that became automata."""
    counts: collections.Counter[str] = collections.Counter()
    compiling: list[float] = []
    instances, found = [], rows(name)
    for row in random.Random(0).sample(found, min(count, len(found))):
        asked = StructuredOutputs(json=row["schema"])
        judges = {"ours": taken(asked, compiling), "llguidance": alone(asked)}
        counts["automata"] += isinstance(judges["ours"], Automaton)
        for who, judge in judges.items():
            if judge is None:
                counts[f"{who}: refused"] += 1
                continue
            right = 0
            for test in row["tests"]:
                text = json.dumps(test["data"], ensure_ascii=False).encode("utf-8", "replace")
                valid = accepts(judge, text)
                right += valid == test["valid"]
                if valid and isinstance(judge, Automaton):
                    instances.append((row["schema"], text.decode()))
            counts[f"{who}: instances right"] += right
            counts[f"{who}: schemas all right"] += right == len(row["tests"])
    print(name, dict(sorted(counts.items())))
    print(f"  compiling an automaton, ms p50 / p99 / most: {percentiles(compiling, 1e-3)}")
    return instances


def taken(asked: StructuredOutputs, compiling: list[float]) -> Automaton | str | None:
    """What serves a schema here, and the seconds that compiling it took if that is an automaton."""
    began = time.perf_counter()
    try:
        grammar = compile(asked, "auto", "")
    except BadRequest:
        return None
    if grammar.kind != "automaton":
        return grammar.data.decode()
    compiling.append(time.perf_counter() - began)
    return Automaton.decode(grammar.data)


def alone(asked: StructuredOutputs) -> str | None:
    try:
        return guidance(asked)
    except BadRequest:
        return None


def accepts(judge: Automaton | str, text: bytes) -> bool:
    if isinstance(judge, Automaton):
        return judge.matches(text)
    matcher = LLMatcher(BYTES, judge, log_level=0)
    return matcher.consume_tokens(list(text)) and matcher.is_accepting()


def masks(instances: list[tuple[dict, str]], model: str) -> None:
    """The time of a mask at each token of the instances: first, and once it is known."""
    native.library()
    text = connect.text(load({"model": model}, {}))
    pieces = text.pieces(True)
    vocabulary = Vocabulary(pieces, text.vocab, text.eos)
    told = Tokens(pieces, text.eos, lambda one: text.encode(one, False))
    wrapped = LLTokenizer(TokenizerWrapper(Wrapped(told, text.vocab)))
    other = XGrammar(pieces, text) if xgrammar is not None else None
    first, again, theirs = [], [], []
    for schema, instance in instances[:300]:
        asked = StructuredOutputs(json=schema)
        known = Masks(Automaton.decode(compile(asked, "automaton", "").data), vocabulary)
        tokens = text.encode(instance, False)
        for times in (first, again):
            state = known.automaton.start
            for token in tokens:
                began = time.perf_counter()
                known.mask(state)
                times.append(time.perf_counter() - began)
                state = known.automaton.run(pieces[token], state)
        matcher = LLMatcher(wrapped, guidance(asked), log_level=0)
        for token in tokens:
            began = time.perf_counter()
            matcher.compute_bitmask()
            theirs.append(time.perf_counter() - began)
            if not matcher.consume_token(token):
                break
        if other is not None:
            other.follow(schema, tokens)
    print(f"masks over {len(again)} tokens, vocabulary {text.vocab}, µs p50 / p99 / most")
    print(f"  automaton, known: {percentiles(again, 1e-6)}; first: {percentiles(first, 1e-6)}")
    print(f"  llguidance: {percentiles(theirs, 1e-6)}")
    if other is not None:
        print(f"  xgrammar {version('xgrammar')}: {percentiles(other.masks, 1e-6)}, of", end=" ")
        print(f"{other.followed} texts, {other.refused} refused; compiling them, ms:", end=" ")
        print(percentiles(other.compiling, 1e-3))


class XGrammar:
    """xgrammar over one vocabulary: seconds of its masks and of compiling."""

    def __init__(self, pieces: list[bytes], text: Text):
        pieces = [piece or b"<%d>" % token for token, piece in enumerate(pieces)]
        ends = sorted(text.eos)
        info = xgrammar.TokenizerInfo(pieces, vocab_size=text.vocab, stop_token_ids=ends)
        self._compiler = xgrammar.GrammarCompiler(info, max_threads=1, cache_enabled=False)
        self._bits = xgrammar.allocate_token_bitmask(1, text.vocab)
        self.masks: list[float] = []
        self.compiling: list[float] = []
        self.followed = self.refused = 0

    def follow(self, schema: dict, tokens: list[int]) -> None:
        began = time.perf_counter()
        try:
            compiled = self._compiler.compile_json_schema(
                json.dumps(schema), any_whitespace=False, strict_mode=False
            )
        except RuntimeError:
            self.refused += 1
            return
        self.compiling.append(time.perf_counter() - began)
        matcher = xgrammar.GrammarMatcher(compiled)
        for token in tokens:
            began = time.perf_counter()
            matcher.fill_next_token_bitmask(self._bits)
            self.masks.append(time.perf_counter() - began)
            if not matcher.accept_token(token):
                self.refused += 1
                return
        self.followed += 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--schemas", type=int, default=1000)
    parser.add_argument("--model", default="smollm2-135m")
    options = parser.parse_args()
    instances = schemas(options.schemas, "json_schemas.jsonl.gz")
    schemas(options.schemas, "json_schema_test_suite.jsonl.gz")
    masks(instances, options.model)
    patterns()


if __name__ == "__main__":
    sys.setrecursionlimit(50_000)
    threading.stack_size(256 << 20)
    thread = threading.Thread(target=main)
    thread.start()
    thread.join()
