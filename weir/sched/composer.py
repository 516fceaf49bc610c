"""How much of whom one iteration computes."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

from weir.core import Budget, Pick, Request


class Composer(Protocol):
    def compose(self, ranked: Iterable[Request], budget: Budget) -> Iterator[Pick]:
        """Picks, lazily and in rank order; `budget` is read again after each one. A pick may ask
        for more than is left to compute once the cache has been searched."""
        ...


@dataclass(frozen=True, slots=True)
class Whole:
    """Orca: whole prompts and decodes share an iteration. Needs a budget of a whole context."""

    def compose(self, ranked: Iterable[Request], budget: Budget) -> Iterator[Pick]:
        for r in ranked:
            if r.decoding:
                budget.owed -= 1
            if r.todo <= budget.tokens:
                yield Pick(r, r.todo)


class Pace(Protocol):
    def prompts(self, decodes: int, context: int, start: int) -> int:
        """Prompt tokens that an iteration may compute, whose `decodes` decodes read `context`
        tokens of KV between them, when the next prompt goes on from position `start`."""
        ...


@dataclass(frozen=True, slots=True)
class Beside:
    """So many prompt tokens in an iteration that also decodes: how long a stream can wait for its
    next token. An iteration without decodes makes nobody wait and has no bound."""

    tokens: int

    def prompts(self, decodes: int, context: int, start: int) -> int:
        return self.tokens if decodes else sys.maxsize


@dataclass(frozen=True, slots=True)
class Chunked:
    """Sarathi-Serve: stall-free batches. Every decode runs in every iteration, and prompts, cut
    into chunks, fill what the decodes still to come do not need (Algorithm 3), or less if `pace`
    says so."""

    pace: Pace | None = None

    def compose(self, ranked: Iterable[Request], budget: Budget) -> Iterator[Pick]:
        decodes, context, prompts = budget.owed, budget.context, 0
        for r in ranked:
            if r.decoding:
                budget.owed -= 1
                yield Pick(r, 1)
                continue
            if self.pace is not None:
                share = self.pace.prompts(decodes, context, r.computed) - prompts
                budget.tokens = min(budget.tokens, budget.owed + max(0, share))
            if (length := min(r.todo, budget.tokens - budget.owed)) > 0:
                before = budget.tokens
                yield Pick(r, length)
                prompts += before - budget.tokens
