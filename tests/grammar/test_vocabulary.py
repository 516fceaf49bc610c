"""Masks against the automaton itself, token by token."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.grammar.test_regex import PATTERNS, automaton
from weir.grammar.vocabulary import Masks, Vocabulary
from weir.ops import native

PIECES = st.lists(
    st.one_of(st.text("ab1_- é€😀\n", max_size=4).map(str.encode), st.binary(max_size=3)),
    min_size=1,
    max_size=60,
)


def allowed(mask: bytes) -> set[int]:
    bits = np.unpackbits(np.frombuffer(mask, np.uint8), bitorder="little")
    return set(np.flatnonzero(bits).tolist())


@pytest.fixture(scope="module", params=["native", "numpy"])
def walked(request):
    """Masks are made in C++ where there is a compiler, and without it; they are the same."""
    before = native.library()
    if request.param == "numpy":
        native._State.library = None
    elif before is None:
        pytest.skip(native.status())
    yield
    native._State.library = before


@given(PATTERNS, PIECES, st.integers(0, 9))
@settings(max_examples=100, deadline=None)
def test_a_mask_holds_the_tokens_that_fit(walked, pattern: str, pieces: list[bytes], padding: int):
    ours = automaton(pattern)
    end = len(pieces) // 2
    size = len(pieces) + padding - 3
    masks = Masks(ours, Vocabulary(pieces, size, ends=[end, 10_000]))
    for state in range(1, min(ours.states, 12)):
        words = [t for t, piece in enumerate(pieces[: max(0, size)]) if piece and t != end]
        fits = {token for token in words if ours.run(pieces[token], state)}
        ends = {end} if ours.accepting[state] and end < size else set()
        mask = masks.mask(state)
        assert allowed(mask) == fits | ends
        assert len(mask) == -(-max(0, size) // 8) and masks.mask(state) is mask
        for length in range(5):
            expected = any(len(pieces[token]) > length for token in fits)
            assert masks.outgrown(state, length) == expected


def test_tokens_of_equal_bytes_and_of_every_length(walked):
    pieces = [b"ab", b"a", b"ab", b"\0", b"a\0", b"abc" * 50, b"", b"ab", b"b"]
    vocabulary = Vocabulary(pieces, len(pieces), ends=[])
    for pattern, fits in (("(?s:.)*", {0, 1, 2, 3, 4, 5, 7, 8}), ("ab", {0, 1, 2, 7})):
        assert allowed(Masks(automaton(pattern), vocabulary).mask(1)) == fits
    masks = Masks(automaton("(abc){60}"), vocabulary)
    assert masks.outgrown(1, 149) and not masks.outgrown(1, 150)
