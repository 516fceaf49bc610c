"""What grammars need of a tokenizer. Imports nothing: servers that compute nothing name it too."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Tokens:
    """What a tokenizer says. ends: ids that end an answer."""

    pieces: Sequence[bytes]
    ends: Iterable[int]
    encode: Callable[[str], Sequence[int]]
