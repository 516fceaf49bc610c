"""The grammar of policy names: `fair(aging(learned, threshold=100))`.

    expression = name [ "(" argument { "," argument } ")" ]
    argument   = option "=" value | expression

Knows how a policy is written, not which there are.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from weir.errors import ConfigError

TOKEN = re.compile(r"\s*([a-z][a-z0-9_-]*|=\s*[^\s,()=]+|[(),])")


@dataclass(slots=True)
class Expression:
    """`where` names the flag in every error."""

    where: str
    name: str
    inner: list[Expression] = field(default_factory=list)
    options: dict[str, str] = field(default_factory=dict)

    def read(self, kinds: Mapping[str, Any], most: int = 0, least: int = 0) -> dict[str, Any]:
        """The options given, each as its kind, where `least` to `most` inner expressions may be.
        Raises `ConfigError`."""
        if not least <= len(self.inner) <= most:
            wants = ("takes no policy" if not most else "goes around one policy") + " in brackets"
            raise ConfigError(f"{self.where}: {self.name} {wants}, got {len(self.inner)}")
        values = {}
        for name, text in self.options.items():
            if name not in kinds:
                known = ", ".join(sorted(kinds)) or "none"
                raise ConfigError(
                    f"{self.where}: {self.name} has no option {name}; its options: {known}"
                )
            try:
                values[name] = msgspec.convert(text, kinds[name], strict=False)
            except msgspec.ValidationError as error:
                rule = str(error).split(", got")[0]
                raise ConfigError(
                    f"{self.where}: {self.name}({name}={text}): {rule[0].lower()}{rule[1:]}"
                ) from None
        return values


def parse(text: str, where: str) -> Expression:
    """Read an expression. Raises `ConfigError` with the place where it stops making sense."""
    tokens, at = [], 0
    while match := TOKEN.match(text, at):
        tokens.append(match[1])
        at = match.end()
    if text[at:].strip():
        raise ConfigError(f"{where}: {text!r} makes no sense from {text[at:].strip()!r} on")
    expression, rest = _expression(tokens, where, text)
    if rest:
        raise ConfigError(f"{where}: {text!r} goes on after its end, with {rest[0]!r}")
    return expression


def _expression(tokens: list[str], where: str, text: str) -> tuple[Expression, list[str]]:
    """The expression that `tokens` begin with, and what is left of them."""
    if not tokens or tokens[0][0] in "=(),":
        raise ConfigError(f"{where}: the name of a policy is missing in {text!r}")
    made, rest = Expression(where, tokens[0]), tokens[1:]
    if not rest or rest[0] != "(":
        return made, rest
    while rest[0] != ")":
        rest = rest[1:]  # the bracket or a comma
        if len(rest) > 1 and rest[1].startswith("="):
            made.options[rest[0]] = rest[1][1:].strip()
            rest = rest[2:]
        else:
            inner, rest = _expression(rest, where, text)
            made.inner.append(inner)
        if not rest or rest[0] not in (",", ")"):
            raise ConfigError(f"{where}: a closing bracket is missing in {text!r}")
    return made, rest[1:]
