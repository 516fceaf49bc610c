"""However an answer is cut into deltas, its events say the same."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests import fakes
from tests.client.conftest import make_ledger
from weir.client import Output
from weir.core import Delta, TokenLogprobs
from weir.params import SamplingParams

TEXT = fakes.text()
ANSWERS = st.text(st.sampled_from("ab é€😀"), max_size=24)
STOPS = st.lists(st.text(st.sampled_from("ab é€"), min_size=1, max_size=3), min_size=1, max_size=3)


def deltas(uid: int, tokens: list[int], cuts: list[int], done: str) -> list[Delta]:
    """`tokens` in pieces of the given lengths, the rest in the last one, which ends the request."""
    pieces = []
    for cut in cuts:
        if cut < len(tokens):
            pieces.append(Delta(uid, tokens[:cut]))
            tokens = tokens[cut:]
    return [*pieces, Delta(uid, tokens, done=done)]


def assemble(params: SamplingParams, tokens: list[int], cuts: list[int], done: str = "length"):
    """The completion that deltas make, and the uids that had to be aborted."""
    ledger = make_ledger(TEXT)
    assembly = ledger.admit([1], params, now=0.0)
    completion, aborted = Output(), []
    for at, delta in enumerate(deltas(assembly.submits[0].uid, tokens, cuts, done)):
        events, aborts = ledger.settle([delta], float(at))
        for _, output in events:
            assert completion.finish_reason is None, "an event after the last"
            completion.add(output)
        aborted += aborts
    assert assembly.finished and not ledger.live and not ledger.routes
    assert assembly.usage.completion_tokens == len(completion.token_ids)
    return completion, aborted


def first_stop(text: str, stops: list[str]) -> tuple[int, str] | None:
    """Where the first stop string to be complete ends, the longest if several do, and which."""
    for end in range(1, len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            return end, max(found, key=len)
    return None


@given(ANSWERS, STOPS, *[st.lists(st.integers(1, 5))] * 2, st.integers(0, 5))
def test_what_a_new_engine_repeats_is_told_once(answer, stops, cuts, others, lived):
    """The first engine dies after some deltas; the next one cuts the same tokens otherwise."""
    params, tokens = SamplingParams(stop=stops, max_tokens=100), list(answer.encode())
    wanted, _ = assemble(params, tokens, [])
    ledger, completion = make_ledger(TEXT), Output()
    assembly = ledger.admit([1], params, now=0.0)
    uid = assembly.submits[0].uid
    lives = deltas(uid, tokens, cuts, "length")[:-1][:lived], deltas(uid, tokens, others, "length")
    for life in lives:
        for delta in life:
            for _, output in ledger.settle([delta], 1.0)[0]:
                completion.add(output)
        if not assembly.finished:
            assembly.restart()
    assert (completion.text, completion.token_ids) == (wanted.text, wanted.token_ids)
    assert completion.finish_reason == wanted.finish_reason
    assert assembly.usage.completion_tokens == len(wanted.token_ids)


@pytest.mark.parametrize(
    "after",
    [Delta(0, list(b"ax")), Delta(0, list(b"a"), done="stop"), Delta(0, done="length")],
    ids=["other", "shorter", "empty"],
)
def test_a_new_engine_that_says_something_else(after):
    ledger = make_ledger(TEXT)
    assembly = ledger.admit([1], SamplingParams(max_tokens=9), now=0.0)
    after.uid = assembly.submits[0].uid
    ledger.settle([Delta(after.uid, list(b"ab"))], 1.0)
    assembly.restart()
    ((_, output),), _ = ledger.settle([after], 2.0)
    assert output.finish_reason == "error" and "send the request again" in output.error
    assert not ledger.live and not output.token_ids


@given(ANSWERS, STOPS, st.lists(st.integers(1, 5)), st.booleans())
def test_stop_strings_end_the_answer_wherever_tokens_are_cut(answer, stops, cuts, include):
    params = SamplingParams(stop=stops, include_stop_str_in_output=include, max_tokens=100)
    tokens = list(answer.encode())
    completion, aborted = assemble(params, tokens, cuts)
    found = first_stop(answer, stops)
    if found is None:
        assert completion.text == answer
        assert completion.token_ids == tokens
        assert (completion.finish_reason, completion.stop_reason) == ("length", None)
        assert not aborted
    else:
        end, stop = found
        assert completion.text == answer[: end if include else end - len(stop)]
        assert completion.token_ids == list(answer[:end].encode())
        assert (completion.finish_reason, completion.stop_reason) == ("stop", stop)


@given(st.binary(max_size=24), st.lists(st.integers(1, 5)))
def test_any_bytes_come_out_as_they_decode(answer, cuts):
    completion, _ = assemble(SamplingParams(max_tokens=100), list(answer), cuts)
    assert completion.text == answer.decode(errors="replace")


@given(st.text(st.sampled_from("abc"), max_size=16), st.integers(0, 16))
def test_stop_strings_do_not_count_before_min_tokens(answer, least):
    params = SamplingParams(stop="ab", min_tokens=least, max_tokens=100)
    completion, _ = assemble(params, list(answer.encode()), [1] * len(answer))
    at = answer.find("ab", least)
    assert completion.text == (answer if at < 0 else answer[:at])


@pytest.mark.parametrize("include", [False, True])
def test_the_token_that_ends_an_answer(include):
    """EOS is a token of the answer but not of its text; a stop token is shown if asked for."""
    params = SamplingParams(
        stop_token_ids=[ord("!")], include_stop_str_in_output=include, max_tokens=9
    )
    ended, _ = assemble(params, [*b"hi", fakes.EOS], [], "stop")
    assert (ended.text, ended.token_ids[-1], ended.stop_reason) == ("hi", fakes.EOS, None)
    stopped, _ = assemble(params, list(b"hi!"), [], "stop")
    assert stopped.text == ("hi!" if include else "hi")
    assert stopped.stop_reason == ord("!")


def test_logprobs_end_where_the_tokens_do(ledger):
    params = SamplingParams(logprobs=1, stop="b", max_tokens=9)
    assembly = ledger.admit([1], params, now=0.0)
    entries = [TokenLogprobs(t, -1.0, 2, [(0xC3, -0.5)]) for t in b"abc"]
    delta = Delta(assembly.submits[0].uid, list(b"abc"), entries)
    ((_, output),), aborts = ledger.settle([delta], 1.0)
    assert output.token_ids == list(b"ab") and aborts == [assembly.submits[0].uid]
    assert [entry.token for entry in output.logprobs] == ["a", "b"]
    assert output.logprobs[0].bytes == [ord("a")] and output.logprobs[0].rank == 2
    (top,) = output.logprobs[0].top
    assert (top.token, top.bytes, top.rank) == ("\N{REPLACEMENT CHARACTER}", [0xC3], 1)


def test_choices_that_overtake_the_one_that_scores_the_prompt_wait_for_it(ledger):
    params = SamplingParams(prompt_logprobs=0, n=3, stop="b", max_tokens=8)
    assembly = ledger.admit("prompt", params, now=0.0)
    first, second, third = (one.uid for one in assembly.submits)
    scores = [TokenLogprobs(token, -1.0, 1, []) for token in b"rompt"]
    early = [Delta(second, [97]), Delta(third, [98]), Delta(first, scores=scores[:3])]
    assert ledger.settle([*early, Delta(third, [99], done="length")], 1.0) == ([], [])
    events, aborts = ledger.settle([Delta(first, [97], scores=scores[3:])], 2.0)
    said = [(output.index, output.text, output.finish_reason) for _, output in events]
    assert said == [(1, "a", None), (2, "", "stop"), (0, "a", None)] and aborts == [third]
    assert len(assembly.prompt_logprobs) == len("prompt")
    events, _ = ledger.settle([Delta(second, [97]), Delta(third, [97])], 3.0)
    assert [output.index for _, output in events] == [1]


def test_prompt_logprobs_come_in_pieces_and_are_whole_with_the_first_event(ledger):
    params = SamplingParams(prompt_logprobs=0, score_from=3, max_tokens=2)
    assembly = ledger.admit(list(b"prompt"), params, now=0.0)
    uid = assembly.submits[0].uid
    scores = [TokenLogprobs(t, -1.0, 1, []) for t in b"mpt"]
    assert ledger.settle([Delta(uid, scores=scores[:2])], 1.0) == ([], [])
    events, _ = ledger.settle([Delta(uid, [97], scores=scores[2:])], 2.0)
    assert len(events) == 1
    texts = [entry and entry.token for entry in assembly.prompt_logprobs]
    assert texts == [None, None, None, "m", "p", "t"]


@given(st.data())
def test_choices_do_not_mix(data):
    """Deltas of several choices in any order: each gets its own text, usage counts them all."""
    ledger = make_ledger(TEXT)
    answers = data.draw(st.lists(ANSWERS, min_size=2, max_size=4))
    assembly = ledger.admit([1], SamplingParams(n=len(answers), max_tokens=100), now=0.0)
    assert len({submit.sampling.seed for submit in assembly.submits}) == len(answers)
    queues = [
        deltas(submit.uid, list(answer.encode()), data.draw(st.lists(st.integers(1, 9))), "length")
        for submit, answer in zip(assembly.submits, answers, strict=True)
    ]
    completions = [Output(index=index) for index in range(len(answers))]
    ends: list = []
    ledger.listeners.append(ends.append)
    while any(queues):
        queue = data.draw(st.sampled_from([queue for queue in queues if queue]))
        for _, output in ledger.settle([queue.pop(0)], 1.0)[0]:
            completions[output.index].add(output)
    assert [completion.text for completion in completions] == answers
    (ended,) = ends
    assert ended.finish_reasons == ["length"] * len(answers)
    assert ended.usage.completion_tokens == sum(len(answer.encode()) for answer in answers)


def test_timing_and_gaps(ledger):
    assembly = ledger.admit([1], SamplingParams(max_tokens=9), now=1.0)
    uid = assembly.submits[0].uid
    ended: list = []
    ledger.listeners.append(ended.append)
    ledger.settle([Delta(uid, [97], cached=1, started=1.5)], 2.0)
    ledger.settle([Delta(uid, [97])], 2.5)
    ledger.settle([Delta(uid, [97], done="length", preempted=2)], 4.0)
    timing = assembly.timing
    assert (timing.arrival, timing.started, timing.first, timing.last) == (1.0, 1.5, 2.0, 4.0)
    assert ended[0].gaps == [0.5, 1.5]
    assert (ended[0].preempted, ended[0].usage.cached_tokens) == (2, 1)
