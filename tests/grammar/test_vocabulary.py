"""Masks against the automaton itself, token by token."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.grammar.test_regex import PATTERNS, automaton
from weir.grammar.vocabulary import Masks, Vocabulary

PIECES = st.lists(
    st.one_of(st.text("ab1_- é€😀\n", max_size=4).map(str.encode), st.binary(max_size=3)),
    min_size=1,
    max_size=60,
)


def allowed(mask: bytes) -> set[int]:
    bits = np.unpackbits(np.frombuffer(mask, np.uint8), bitorder="little")
    return set(np.flatnonzero(bits).tolist())


@given(PATTERNS, PIECES, st.integers(0, 9))
@settings(max_examples=150, deadline=None)
def test_a_mask_holds_the_tokens_that_fit(pattern: str, pieces: list[bytes], padding: int):
    ours = automaton(pattern)
    end = len(pieces) // 2
    size = len(pieces) + padding - 3
    masks = Masks(ours, Vocabulary(pieces, size, ends=[end, 10_000]))
    for state in range(1, min(ours.states, 12)):
        expected = {
            token
            for token, piece in enumerate(pieces[: max(0, size)])
            if (ours.accepting[state] if token == end else piece and ours.run(piece, state))
        }
        mask = masks.mask(state)
        assert allowed(mask) == expected
        assert len(mask) == -(-max(0, size) // 8) and masks.mask(state) is mask


def test_wide_and_narrow_levels_agree():
    """A wide state is computed for whole levels, a narrow one node by node."""
    pieces = [bytes([a, b, c]) for a in range(60, 80) for b in range(60, 80) for c in range(60, 80)]
    vocabulary = Vocabulary(pieces, len(pieces), ends=[])
    for pattern in ("(?s:.)*", "[<-F].[<-?]", "<[<-O]{2}", "<<<"):
        ours = automaton(pattern)
        fits = {t for t, piece in enumerate(pieces) if ours.run(piece, 1)}
        assert allowed(Masks(ours, vocabulary).mask(1)) == fits and fits
