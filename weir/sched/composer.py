"""How much of whom one iteration computes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

from weir.core import Budget, Pick, Request


class Composer(Protocol):
    def tokens(self, most: int, owed: int) -> int:
        """The budget of an iteration, of at most `most`, in which `owed` decodes want a token."""
        ...

    def compose(self, ranked: Iterable[Request], budget: Budget) -> Iterator[Pick]:
        """Picks, lazily and in rank order; `budget` is read again after each one. A pick may ask
        for more than is left to compute once the cache has been searched."""
        ...


@dataclass(frozen=True, slots=True)
class Whole:
    """Orca: whole prompts and decodes share an iteration. Needs a budget of a whole context."""

    def tokens(self, most: int, owed: int) -> int:
        return most

    def compose(self, ranked: Iterable[Request], budget: Budget) -> Iterator[Pick]:
        for r in ranked:
            if r.decoding:
                budget.owed -= 1
            if r.todo <= budget.tokens:
                yield Pick(r, r.todo)


@dataclass(frozen=True, slots=True)
class Chunked:
    """Sarathi-Serve: stall-free batches. Every decode runs in every iteration, and prompts, cut
    into chunks, fill what the decodes still to come do not need (Algorithm 3).

    beside: prompt tokens in an iteration that also decodes, which is how long a stream can wait
    for its next token; None: as many as fit. An iteration without decodes makes nobody wait."""

    beside: int | None = None

    def tokens(self, most: int, owed: int) -> int:
        return most if self.beside is None or owed == 0 else min(most, owed + self.beside)

    def compose(self, ranked: Iterable[Request], budget: Budget) -> Iterator[Pick]:
        for r in ranked:
            if r.decoding:
                budget.owed -= 1
                yield Pick(r, 1)
            elif (length := min(r.todo, budget.tokens - budget.owed)) > 0:
                yield Pick(r, length)
