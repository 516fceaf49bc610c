"""The short way to plan a decode is the long way."""

import copy

from hypothesis import given
from hypothesis import strategies as st

from weir.core import PENDING, Page, Request, Sampling
from weir.sched.advance import advance, decode


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
