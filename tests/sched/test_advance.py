"""The short way to plan a decode is the long way; and whose fault it is that no token fits."""

import copy

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weir.core import PENDING, Page, Request, Result, Sampling
from weir.sched.advance import advance, decode, settle


@given(st.integers(1, 40), st.integers(0, 40), st.integers(1, 16), st.data())
def test_a_decode_with_room_is_advanced_as_any_chunk(prompt, answered, page, data):
    sampling = Sampling(
        max_tokens=100,
        frequency_penalty=data.draw(st.sampled_from([0.0, 0.5])),
        prompt_logprobs=data.draw(st.sampled_from([None, 2])),
    )
    r = Request(7, list(range(prompt)), sampling, 0.0)
    r.tokens += range(100, 100 + answered + 1)
    r.settled = r.told = len(r.tokens)
    r.computed = len(r.tokens) - 1
    r.flying = data.draw(st.integers(0, 2))
    r.sampled = data.draw(st.booleans())
    if r.sampled and r.flying:
        r.tokens[-1], r.settled = PENDING, r.settled - 1
    r.pages = [Page(0, i) for i in range(len(r.tokens) // page + 1)]
    r.sent = len(r.pages)
    other = copy.deepcopy(r)
    assert decode(r, 1) == advance(other, 1, 1)
    assert (r.tokens, r.computed, r.flying) == (other.tokens, other.computed, other.flying)
    assert (r.sampled, r.sent) == (other.sampled, other.sent)


class Masked:
    """A grammar that allows these tokens."""

    def __init__(self, *tokens: int):
        self.bits = sum(1 << token for token in tokens)

    def mask(self, alone: bool = False) -> bytes:
        return self.bits.to_bytes(2, "little")


@pytest.mark.parametrize(
    ("wishes", "matcher", "refused"),
    [
        ({}, None, False),
        ({"allowed": [3, 9]}, None, False),
        ({"allowed": [9], "min_tokens": 1}, None, True),
        ({"allowed": [9], "min_tokens": 0}, None, False),
        ({"min_tokens": 1}, Masked(9), True),
        ({"min_tokens": 1}, Masked(3, 9), False),
        ({"allowed": [3, 40]}, Masked(4), True),
        ({"allowed": [3, 40]}, Masked(3), False),
        ({}, Masked(), True),
    ],
)
def test_a_request_that_excludes_every_token_is_refused(wishes, matcher, refused):
    """And for any other failure it is not to blame."""
    r = Request(7, [1, 2], Sampling(stops=[9], **wishes), 0.0, matcher=matcher)
    delta = settle(r, advance(r, 2, 1), Result({}, failed={7: "lost"}))
    assert delta is not None and (delta.done, delta.refused) == ("error", refused)
    assert ("allowed_token_ids" in delta.error) == refused
