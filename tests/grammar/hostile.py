"""Patterns, schemas and grammars that mean harm: `python -m tests.grammar.hostile [--count 10000]`

Drawn by a seed, so that a run can be repeated. Each is compiled as the server would, and what was
accepted is opened and asked for its first masks. Prints what became of them and what took longest.
"""

import argparse
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Lock
from typing import Any

from tests.grammar import words
from weir.core import Grammar
from weir.errors import BadRequest
from weir.grammar.compiler import Compiler
from weir.grammar.library import Library
from weir.params import StructuredOutputs

FRAGMENTS = (
    r"( ) [ ] {1,999} {999} {0,} * + ? | \ a . é (?: (?= (?! (?<= ^ $ \b \d \W { } - , 9 (a|b)*a"
    r" \p{L} \P{Lu} \1 (?P<x> (?P=x) (?i) (?m) \u{1F600} [^a-z] [[:alpha:]] \x00 \ud83d .* .{5,}"
).split()


def noise(rng: random.Random) -> str:
    """Fragments that nest, explode and break."""
    return "".join(rng.choice(FRAGMENTS) for _ in range(rng.randrange(1, 30)))


def nested(rng: random.Random) -> str:
    """Counts of counts, or groups a thousand deep."""
    depth, most = rng.choice([(2, 999), (4, 200), (8, 30), (90, 3), (3000, 2)])
    unit = rng.choice(["a", "ab|a", ".", r"\w", "[^é]", "a?", "(?=.*a)a"])
    return "(" * depth + unit + "".join(
        rng.choice([f"){{1,{most}}}", ")*", f"){{{most}}}", ")?"]) for _ in range(depth)
    )  # fmt: skip


def exploding(rng: random.Random) -> str:
    """Small to write, exponential as an automaton."""
    size = rng.randrange(5, 300)
    return rng.choice([
        f"(a|b)*a(a|b){{{size}}}",
        "".join(f"(?=.*{chr(97 + n % 26)}{n})" for n in range(size % 30)) + ".*",
        "(" + "|".join(f"x{n}.*y{n}" for n in range(size)) + ")*",
        "".join(f"(?!.*{n}.*)" for n in range(size % 40)) + ".*",
        rf"(\p{{L}}|\d){{1,{size}}}(\W|\p{{N}}){{1,{size}}}",
        "|".join(["a" * rng.randrange(500) for _ in range(size)]),
        "(?i)" + "[" + "".join(chr(rng.randrange(161, 0xD000)) for _ in range(size)) + "]{1,99}",
        "a" * rng.choice([1000, 70_000]) + "*" * rng.randrange(3),
        f"(.*?,){{{size}}}P",
        f"(a?){{{size}}}a{{{size}}}",
    ])  # fmt: skip


def odd(rng: random.Random) -> Any:
    """A value where a schema wants another."""
    return rng.choice([
        None, True, -1, 0, 1e308, 10**30, 2.5, "", "string", "#", "#/", "#/a/b", [], {}, [None],
        {"type": "string"}, {"$ref": "#"}, ["string", "null"], "\ud800", "\x00", [[]], {"": {}},
    ])  # fmt: skip


KEYWORDS = (
    "type properties required items prefixItems additionalProperties enum const anyOf allOf oneOf "
    "not if then minLength maxLength pattern format minimum maximum exclusiveMinimum minItems "
    "maxItems uniqueItems $ref $defs multipleOf patternProperties propertyNames dependentRequired "
    "contains minProperties $anchor $dynamicRef unevaluatedProperties default title x-made-up"
).split()


def mangled(rng: random.Random, depth: int = 3) -> Any:
    """Known keywords with values of any kind."""
    schema: dict[str, Any] = {"type": rng.choice(["object", "array", "string", "integer", "null"])}
    for _ in range(rng.randrange(5)):
        value = odd(rng) if rng.random() < 0.6 or not depth else mangled(rng, depth - 1)
        schema[rng.choice(KEYWORDS)] = value
    if depth and rng.random() < 0.7:
        inner = {f"k{n}": mangled(rng, depth - 1) for n in range(rng.randrange(4))}
        schema |= {"properties": inner, "additionalProperties": rng.choice([False, True, odd(rng)])}
    return schema if rng.random() < 0.95 else odd(rng)


def huge(rng: random.Random) -> Any:
    """Valid, and large once it is written out."""
    size = rng.choice([10, 100, 1000])
    strict: dict[str, Any] = {"type": "object", "additionalProperties": False}
    text = {"type": "string", "maxLength": rng.choice([1, 50, 10**6])}
    deep: dict[str, Any] = {"type": "integer"}
    for _ in range(min(size, 300)):
        deep = strict | {"properties": {"a": deep, "b": text}}
    bomb = {f"d{n}": {"anyOf": [{"$ref": f"#/$defs/d{n + 1}"}] * 9} for n in range(size % 60)}
    last = {f"d{size % 60}": {"type": "null"}}
    return rng.choice([
        strict | {"properties": {f"p{n}": text for n in range(size)}},
        strict | {"properties": {f"p{n}": text for n in range(size)}, "required": [f"p{size}"]},
        {"enum": [f"value {n * 7919}" for n in range(10 * size)]},
        {"type": "array", "items": text, "minItems": size, "maxItems": size * 1000},
        {"type": "array", "items": {"type": "array", "items": deep, "maxItems": 20}},
        {"type": "string", "pattern": rng.choice([nested, exploding])(rng)},
        {"type": "integer", "minimum": -(10**size), "maximum": 10**size},
        {"$ref": "#/$defs/d0", "$defs": bomb | last},
        {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}},
        {"anyOf": [strict | {"properties": {f"p{n}": deep}} for n in range(min(size, 30))]},
        {"allOf": [{"type": "string", "minLength": n} for n in range(size)]},
        deep,
    ])  # fmt: skip


def grammar(rng: random.Random) -> str:
    """Lark and EBNF: recursion without end, ambiguity, repeats, rules that are not there."""
    size = rng.randrange(2, 2000)
    return rng.choice([
        "start: start | start start | \"a\"",
        "start: a\na: b\nb: a",
        "start: " + " ".join(["x?"] * size) + "\nx: \"a\" | \"a\" x",
        "start: /" + exploding(rng).replace("/", "") + "/",
        "start: A\nA: /" + nested(rng) + "/ | B\nB: A",
        "".join(f"r{n}: r{n + 1} r{n + 1}\n" for n in range(size % 60)) + "start: r0",
        "root ::= " + "(" * size + '"a"' + ")" * size,
        f"root ::= [a-z]{{1,{size}}} root | root",
        "start: \"a\"~1.." + str(size * 1000),
        "start: %json {\"$ref\": \"#\"}",
        "start: " + noise(rng),
        noise(rng),
        "\x00" * size,
    ])  # fmt: skip


KINDS: dict[str, Callable[[random.Random], StructuredOutputs]] = {
    "noise": lambda rng: StructuredOutputs(regex=noise(rng)),
    "nested": lambda rng: StructuredOutputs(regex=nested(rng)),
    "exploding": lambda rng: StructuredOutputs(regex=exploding(rng)),
    "mangled": lambda rng: StructuredOutputs(json=_schema(mangled(rng))),
    "huge": lambda rng: StructuredOutputs(json=_schema(huge(rng))),
    "grammar": lambda rng: StructuredOutputs(grammar=grammar(rng)),
    "choices": lambda rng: StructuredOutputs(
        choice=[noise(rng) for _ in range(10 ** rng.randrange(4))]
    ),
}


def _schema(value: Any) -> Any:
    return value if isinstance(value, dict | bool) else {"anyOf": value}


def drawn(seed: int, count: int) -> Iterator[tuple[str, StructuredOutputs]]:
    """`count` of them, kind after kind."""
    for number in range(count):
        kind = list(KINDS)[number % len(KINDS)]
        yield kind, KINDS[kind](random.Random(seed * 1_000_003 + number))


def library() -> Library:
    return Library(words.tokens, words.SIZE)


OPENING = Lock()  # a library is one thread's


def tried(compiler: Compiler, opener: Library, asked: StructuredOutputs, limit: float) -> str:
    """What became of one. Raises AssertionError where something hangs or says nothing."""
    began = time.monotonic()
    try:
        compiled = compiler.compile(asked)
    except BadRequest as error:
        assert str(error), "a refusal without a reason"
        took = time.monotonic() - began
        assert took < 2 * (compiler.seconds + limit), f"refused after {took:.1f} s"
        return "too long" if "takes more than" in str(error) else "refused"
    with OPENING:
        return opened(opener, compiled, limit)


def opened(opener: Library, compiled: Grammar, limit: float) -> str:
    """Open it and follow it for a few tokens."""
    deadline = time.monotonic() + limit
    opening = opener.open(compiled, [], 8, True)
    while not opening.done():
        assert time.monotonic() < deadline, "not opened"
        opener.renew()
        time.sleep(1e-4)
    try:
        matcher = opening.result()
        matcher.begin()
        for _ in range(3):
            deadline = time.monotonic() + limit
            mask = matcher.mask(alone=True)
            assert mask is not None, "no mask"
            if matcher.complete or not any(mask):
                break
            first = next(n for n in range(8 * len(mask)) if mask[n // 8] >> n % 8 & 1)
            if first >= 256:
                break
            while matcher.advance(first) is None:
                assert time.monotonic() < deadline, "a token is not taken in"
                opener.renew()
    except AssertionError:
        raise
    except Exception as error:
        return f"ended: {type(error).__name__}"
    return compiled.kind


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=1.0, help="that one may take to compile")
    options = parser.parse_args()
    compiler, opener = Compiler(seconds=options.seconds), library()
    counts: Counter[tuple[str, str]] = Counter()
    times: list[tuple[float, str, str]] = []

    def one(item: tuple[str, StructuredOutputs]) -> None:
        kind, asked = item
        began = time.monotonic()
        verdict = tried(compiler, opener, asked, 20.0)
        counts[kind, verdict] += 1
        times.append((time.monotonic() - began, kind, repr(asked)[:90]))

    with ThreadPoolExecutor(2) as threads:
        for done, _ in enumerate(threads.map(one, drawn(options.seed, options.count)), 1):
            if done % 1000 == 0:
                print(f"{done} of {options.count}", flush=True)
    for (kind, verdict), number in sorted(counts.items()):
        print(f"{kind:10} {verdict:20} {number}")
    for took, kind, text in sorted(times, reverse=True)[:10]:
        print(f"{took:6.2f} s {kind:10} {text}")
    compiler.close()
    opener.close()


if __name__ == "__main__":
    main()
