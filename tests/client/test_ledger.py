"""What is admitted and what is turned away, and that nobody is forgotten."""

import math

import numpy as np
import pytest

from tests.client.conftest import make_ledger
from weir.client.ledger import Limits
from weir.core import Delta
from weir.errors import BadRequest, Overloaded
from weir.params import SamplingParams

ABSURD = [
    ({"temperature": math.nan}, "temperature"),
    ({"max_tokens": -1}, "max_tokens"),
    ({"n": 0}, "n"),
    ({"stop": ["x"] * 65}, "stop"),
    ({"stop": "x", "detokenize": False}, "stop"),
    ({"logit_bias": {257: 1.0}}, "logit_bias"),
    ({"logit_bias": {"5": 1.0}}, "logit_bias"),
    ({"min_tokens": 300, "max_tokens": None}, "min_tokens"),
    ({"max_tokens": 255}, "max_tokens"),
]


@pytest.mark.parametrize(("fields", "param"), ABSURD)
def test_absurd_parameters_name_the_field(ledger, fields, param):
    with pytest.raises(BadRequest) as caught:
        ledger.admit([1, 2], SamplingParams(**fields), now=0.0)
    assert caught.value.param == param
    assert not ledger.live and sum(ledger.rejected.values()) == 1


ODD = ["", [], [-1], [257], [1.5], ["a"], [True], "a" * 257, b"ab", {1: 2}, None, 3]


@pytest.mark.parametrize("prompt", ODD)
def test_absurd_prompts_are_refused(ledger, prompt):
    with pytest.raises(BadRequest) as caught:
        ledger.admit(prompt, SamplingParams(), now=0.0)
    assert caught.value.param == "prompt"


@pytest.mark.parametrize(
    ("param", "value"),
    [("priority", None), ("priority", "x"), ("priority", 1.5), ("request_id", 5)],
)
def test_details_that_no_engine_could_read_are_refused(ledger, param, value):
    """Its process would drop the whole message, and the request would never end."""
    with pytest.raises(BadRequest) as caught:
        ledger.admit([1], SamplingParams(), now=0.0, **{param: value})
    assert caught.value.param == param and not ledger.live


def test_a_dict_is_no_structured_outputs():
    with pytest.raises(BadRequest, match="must be StructuredOutputs"):
        SamplingParams(structured_outputs={"regex": "a"})


def test_a_text_far_too_long_is_refused_without_tokenising(ledger, monkeypatch):
    """A body of 100 MB must not hold up everybody else's tokens."""
    monkeypatch.setattr(ledger.text, "encode", lambda *_, **__: pytest.fail("it was tokenised"))
    with pytest.raises(BadRequest) as caught:
        ledger.admit("a" * 10_000_000, SamplingParams(), now=0.0)
    assert caught.value.code == "context_length_exceeded"


def test_too_long_says_the_numbers(ledger):
    with pytest.raises(BadRequest) as caught:
        ledger.admit([1] * 250, SamplingParams(max_tokens=16), now=0.0)
    assert caught.value.code == "context_length_exceeded"
    for number in ("256", "266", "250", "16"):
        assert number in str(caught.value)


def test_max_tokens_none_is_what_fits(ledger):
    assembly = ledger.admit([1] * 250, SamplingParams(max_tokens=None), now=0.0)
    assert assembly.submits[0].sampling.max_tokens == 6


def test_request_ids_are_unique_among_the_live(ledger):
    first = ledger.admit([1], SamplingParams(), now=0.0, request_id="mine")
    with pytest.raises(BadRequest, match="mine") as caught:
        ledger.admit([1], SamplingParams(), now=0.0, request_id="mine")
    assert caught.value.param == "request_id"
    ledger.end(first, "abort")
    ledger.admit([1], SamplingParams(), now=0.0, request_id="mine")


def test_seeds_are_kept_or_drawn(text):
    def seeds(ledger, **fields):
        assemblies = [ledger.admit([1], SamplingParams(n=2, **fields), now=0.0) for _ in range(2)]
        return [submit.sampling.seed for a in assemblies for submit in a.submits]

    drawn = seeds(make_ledger(text))
    assert len(set(drawn)) == 4 and drawn == seeds(make_ledger(text))
    given = seeds(make_ledger(text), seed=7)
    assert given[:2] == given[2:] and given[0] == 7 != given[1]


def test_the_queue_is_bounded_by_requests(text):
    ledger = make_ledger(text, Limits(requests=3))
    waiting = [ledger.admit([1], SamplingParams(), now=0.0) for _ in range(3)]
    with pytest.raises(Overloaded) as caught:
        ledger.admit([1], SamplingParams(), now=0.0)
    assert caught.value.retry_after >= 1 and ledger.rejected == {"queue_full": 1}
    ledger.running = 1  # the engine says it has begun one
    ledger.admit([1], SamplingParams(), now=0.0)
    ledger.running = 0
    with pytest.raises(Overloaded):
        ledger.admit([1], SamplingParams(), now=0.0)
    for assembly in waiting[:2]:  # a token is proof too
        ledger.settle([Delta(assembly.submits[0].uid, [97])], 1.0)
    ledger.admit([1], SamplingParams(), now=0.0)


def test_the_queue_is_bounded_by_tokens(text):
    ledger = make_ledger(text, Limits(tokens=10))
    first = ledger.admit([1] * 20, SamplingParams(), now=0.0)  # alone it may be any size
    with pytest.raises(Overloaded):
        ledger.admit([1], SamplingParams(), now=0.0)
    ledger.settle([Delta(first.submits[0].uid, [97])], 1.0)
    ledger.admit([1] * 9, SamplingParams(), now=0.0)
    assert ledger.rejected == {"queue_tokens": 1}


def test_retry_after_follows_the_drain(text):
    """Two leave the queue a second and six too many want in: three seconds."""
    ledger = make_ledger(text, Limits(requests=20))
    for at in range(20):
        assembly = ledger.admit([1], SamplingParams(), now=0.0)
        ledger.settle([Delta(assembly.submits[0].uid, [97], done="length")], at / 2)
    for _ in range(20):
        ledger.admit([1], SamplingParams(), now=0.0)
    with pytest.raises(Overloaded) as caught:
        ledger.admit([1], SamplingParams(n=6), now=10.0)
    assert caught.value.retry_after == pytest.approx(3.0)


def test_a_listener_that_fails_harms_nobody(ledger, caplog):
    def broken(_):
        raise RuntimeError("metrics are down")

    ended: list = []
    ledger.listeners += [broken, ended.append]
    assembly = ledger.admit([1], SamplingParams(), now=0.0)
    ledger.settle([Delta(assembly.submits[0].uid, done="length")], 1.0)
    assert len(ended) == 1 and "metrics are down" in caplog.text


def test_an_answer_that_cannot_be_shown_ends_alone(ledger, monkeypatch, caplog):
    bad, good = (ledger.admit([1], SamplingParams(), now=0.0) for _ in range(2))
    monkeypatch.setattr(type(bad.choices[0]), "push", _fails_for(bad.choices[0]))
    deltas = [Delta(a.submits[0].uid, [97]) for a in (bad, good)]
    events, aborts = ledger.settle(deltas, 1.0)
    assert [(a, o.finish_reason) for a, o in events] == [(bad, "error"), (good, None)]
    assert aborts == [bad.submits[0].uid]


def _fails_for(choice):
    original = type(choice).push

    def push(self, delta):
        if self is choice and delta.tokens:
            raise ValueError("no such token")
        return original(self, delta)

    return push


def test_numbers_of_numpy_are_numbers(ledger):
    params = SamplingParams(temperature=np.float32(0.5), max_tokens=np.int64(7), n=np.int32(2))
    assert len(ledger.admit([1], params, now=0.0).submits) == 2
    with pytest.raises(BadRequest) as caught:
        ledger.admit([1], SamplingParams(temperature=np.float64(101)), now=0.0)
    assert caught.value.param == "temperature"
    with pytest.raises(BadRequest) as caught:
        ledger.admit([1], SamplingParams(stop_token_ids=np.array([1, 2])), now=0.0)
    assert caught.value.param == "stop_token_ids"
