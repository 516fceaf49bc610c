"""A jump says what masks alone would have said, on random grammars and vocabularies."""

import math
import random
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.grammar.test_regex import PATTERNS, automaton
from weir.grammar.automaton import Automaton
from weir.grammar.matcher import JUMP, AutomatonMatcher, Cutter
from weir.grammar.patience import Patience
from weir.grammar.vocabulary import Masks, Vocabulary

END = 256
PIECES = st.lists(st.text("ab1_- é€😀\n", min_size=2, max_size=5), max_size=12, unique=True)
Model = Callable[[bytes, list[int]], int]
"""What comes after a text, of the tokens that are allowed."""


@pytest.fixture(scope="module")
def patience():
    return Patience()


class Speaker:
    """Grammars over one vocabulary: all bytes, an end, and some longer pieces."""

    def __init__(self, words: list[str], patience: Patience):
        self.pieces = [bytes([byte]) for byte in range(256)] + [b""] + [w.encode() for w in words]
        self.longest = sorted(range(END + 1, len(self.pieces)), key=lambda t: -len(self.pieces[t]))
        self.vocabulary = Vocabulary(self.pieces, len(self.pieces), [END])
        self.patience = patience

    def encode(self, text: str) -> list[int]:
        return self.cut(text.encode())

    def cut(self, data: bytes) -> list[int]:
        """The longest piece that fits, again and again."""
        tokens = []
        while data:
            fits = (t for t in self.longest if data.startswith(self.pieces[t]))
            tokens.append(next(fits, data[0]))
            data = data[len(self.pieces[tokens[-1]]) :]
        return tokens

    def say(self, grammar: Automaton, model: Model, jumps: bool, most: int = 40) -> bytes:
        """What the model answers, up to `most` tokens."""
        cutter = Cutter(self.encode, self.pieces) if jumps else None
        masks = Masks(grammar, self.vocabulary)
        matcher = AutomatonMatcher(masks, self.patience, cutter, most=most)
        said = matcher.begin()
        while len(said) < most and not matcher.complete:
            mask = matcher.mask(alone=True)
            bits = np.unpackbits(np.frombuffer(mask, np.uint8), bitorder="little")
            token = model(self.text(said), np.flatnonzero(bits).tolist())
            if token == END:
                break
            said += matcher.advance(token, alone=True)
        return self.text(said)

    def text(self, tokens: list[int]) -> bytes:
        return b"".join(self.pieces[token] for token in tokens)


def a_text(grammar: Automaton, rng: random.Random) -> bytes:
    """A text that matches, drawn by walking."""
    state, text = grammar.start, b""
    while not (grammar.accepting[state] and (rng.random() < 0.3 or grammar.final[state])):
        after, mask = rng.choice(grammar.moves(state))
        byte = rng.choice([b for b in range(256) if mask >> b & 1])
        state, text = after, text + bytes([byte])
        if len(text) > 200:
            return b""
    return text


@given(PATTERNS, PIECES, st.integers(0, 2**32))
@settings(max_examples=80, deadline=None)
def test_a_model_that_knows_what_to_say_says_it(patience, pattern, words, seed):
    speaker, grammar = Speaker(words, patience), automaton(pattern)
    wanted = a_text(grammar, random.Random(seed))

    def model(said: bytes, allowed: list[int]) -> int:
        assert wanted.startswith(said), "a jump said something else"
        return speaker.cut(wanted[len(said) :])[0] if said != wanted else END

    for jumps in (False, True):
        said = speaker.say(grammar, model, jumps, most=300)
        assert said == wanted


@given(PATTERNS, PIECES, st.integers(0, 2**32))
@settings(max_examples=80, deadline=None)
def test_greedy_answers_of_a_model_of_bytes_are_the_same(patience, pattern, words, seed):
    """Its tokens are as likely as their bytes, so it is one model however text is cut."""
    speaker, grammar = Speaker(words, patience), automaton(pattern)

    def likelihood(text: bytes, symbol: int) -> float:
        return math.log1p(zlib.crc32(text + b"%d %d" % (symbol, seed)) / 2**33) - 1

    def model(said: bytes, allowed: list[int]) -> int:
        def score(token: int) -> float:
            if token == END:
                return likelihood(said, END)
            piece = speaker.pieces[token]
            return sum(likelihood(said + piece[:at], byte) for at, byte in enumerate(piece))

        return max(allowed, key=lambda token: (score(token), -token))

    stepped, jumped = (speaker.say(grammar, model, jumps) for jumps in (False, True))
    same = min(len(stepped), len(jumped))
    assert stepped[:same] == jumped[:same]
    assert len(jumped) >= len(stepped)


def test_a_jump_leaves_to_the_model_what_a_longer_token_could_say(patience):
    """The distortion of compressed automata: an "A" that is jumped over cannot become "Above"."""
    speaker = Speaker(["Above", " Aver", "Grade", ": "], patience)
    grammar = automaton(r"Grade: (A|Above Average|Above All)")
    for wanted in (b"Grade: A", b"Grade: Above Average", b"Grade: Above All"):

        def model(said: bytes, allowed: list[int], wanted: bytes = wanted) -> int:
            left = wanted[len(said) :]
            fits = [t for t in allowed if t != END and left.startswith(speaker.pieces[t])]
            return max(fits, key=lambda t: len(speaker.pieces[t]), default=END)

        assert speaker.say(grammar, model, jumps=True) == wanted


def test_a_long_jump_is_taken_in_parts(patience):
    """No step is held up by an answer that is all forced; its text is what it was."""
    speaker = Speaker(["abc", "cab", "bca"], patience)
    wanted = b"abc" * 1000
    grammar = automaton("x?(abc){1000}")
    masks, cutter = Masks(grammar, speaker.vocabulary), Cutter(speaker.encode, speaker.pieces)
    matcher = AutomatonMatcher(masks, patience, cutter, most=10_000)
    said, parts = matcher.begin(), 0
    while not matcher.complete:
        assert matcher.mask(alone=True)
        token = speaker.cut(wanted[len(speaker.text(said)) :])[0]
        tokens = matcher.advance(token, alone=True)
        said, parts = said + tokens, parts + 1
        assert len(speaker.text(tokens)) <= JUMP + 3
    assert speaker.text(said) == wanted and parts < 100
