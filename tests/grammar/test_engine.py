"""Grammars in a whole engine: an executor that draws any token the mask allows stands in for the
model, so what comes out must match whatever it draws."""

from __future__ import annotations

import json
import os
import random
import re
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from tests import embedded
from tests.grammar.words import CRASH, END, HANG, PANIC, PIECES, SIZE, encode, tokens
from weir.core import (
    Capacity,
    Chunk,
    Delta,
    Grammar,
    Plan,
    Request,
    Result,
    Sampling,
    Thought,
    Tier,
    TokenLogprobs,
)
from weir.engine import Engine
from weir.gguf import GGUF
from weir.grammar.compile import compile
from weir.grammar.library import Library
from weir.grammar.shared import Rows
from weir.grammar.tokens import Tokens
from weir.kv.cache import Cache
from weir.params import StructuredOutputs
from weir.sched.composer import Chunked
from weir.sched.placement import OnDemand
from weir.sched.ranking import FCFS
from weir.sched.scheduler import Scheduler
from weir.text import Text


class Drawing:
    """Draws among the allowed tokens by position and seed, often one of `likes`; without a mask, a
    letter."""

    chains = True
    likes: Sequence[int] = ()

    def __init__(self, seed: int, depth: int):
        self.depth = depth
        self.seed = seed
        self.capacity = Capacity(4, {Tier.CPU: 200}, tokens=32, requests=8, context=256)
        self.plans: list[Plan] = []
        self.late: list[Chunk] = []

    def submit(self, plan: Plan) -> _Handle:
        assert not self.late
        self.plans.append(plan)
        self.result = Result({})
        chunks = [chunk for lane in plan.lanes for chunk in lane if chunk.sample is not None]
        for chunk in chunks:
            if not chunk.late:
                self._draw(chunk, chunk.mask)
        self.late = [chunk for chunk in chunks if chunk.late]
        return _Handle(self.result)

    def choose(self, masks: dict[int, bytes]) -> None:
        assert self.late and masks.keys() <= {chunk.uid for chunk in self.late}
        for chunk in self.late:
            self._draw(chunk, masks.get(chunk.uid))
        self.late = []

    def _draw(self, chunk: Chunk, mask: bytes | None) -> None:
        rng = random.Random(self.seed * 1000 + chunk.uid * 7919 + chunk.start + chunk.length)
        if mask is None:
            token = rng.randrange(97, 123)
        else:
            bits = np.unpackbits(np.frombuffer(mask, np.uint8), bitorder="little")
            liked = [one for one in self.likes if one < len(bits) and bits[one]]
            often = liked and rng.random() < 0.2
            token = int(rng.choice(liked if often else np.flatnonzero(bits)))
        self.result.tokens[chunk.uid] = token
        assert chunk.sample is not None
        if chunk.sample.logprobs is not None:
            self.result.logprobs[chunk.uid] = TokenLogprobs(token, -1.0, 1, [])

    def close(self) -> None:
        pass


class _Handle:
    def __init__(self, result: Result):
        self._result = result

    def result(self) -> Result:
        return self._result


@pytest.fixture(scope="module")
def library():
    made = Library(tokens, SIZE, processes=1)
    yield made
    made.close()


def engine(library: Library, seed: int = 0, depth: int = 2, likes: Sequence[int] = ()) -> Engine:
    executor = Drawing(seed, depth)
    executor.likes = likes
    cache = Cache(4, {Tier.CPU: 200})
    placement = OnDemand(Tier.CPU)
    scheduler = Scheduler(cache, FCFS(), Chunked(), placement, executor.capacity, chains=True)
    return Engine(scheduler, executor, library=library)


def request(uid: int, grammar: Grammar | None, most: int = 120, **sampling) -> Request:
    prompt = list(b"prompt %d: " % uid)
    wishes = Sampling(max_tokens=most, stops=[END], **sampling)
    return Request(uid, prompt, wishes, 0.0, grammar=grammar)


def run(engine: Engine, requests: list[Request]) -> dict[int, Delta]:
    """All that deltas told of each request, as one."""
    there = [*engine.scheduler.live.values(), *(r for r, _ in engine.opening.values())]
    whole = {r.uid: Delta(r.uid) for r in [*there, *requests]}
    for r in requests:
        engine.add(r)
    while engine.busy:
        for delta in engine.step():
            mine = whole[delta.uid]
            assert mine.done is None
            mine.tokens = mine.tokens + delta.tokens
            mine.logprobs = mine.logprobs + delta.logprobs
            mine.done, mine.error = delta.done, delta.error
    assert not engine.scheduler.live and engine.scheduler.cache.room(Tier.CPU) == 200
    return whole


def text(delta: Delta) -> str:
    tokens = delta.tokens[:-1] if delta.tokens and delta.tokens[-1] == END else delta.tokens
    return b"".join(PIECES[token] for token in tokens).decode()


REGEXES = [
    r'\{"name": "(na|é|12)*", "age": (true|[0-9]{1,3})\}',
    r"(name|age): é{2,4}",
    r'(\{"name": \[true, true\]\})?x',
    "é12true",
    "[a-f]{5,}",
]
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "array", "items": {"$ref": "#"}},
        "age": {"type": "boolean"},
    },
    "required": ["age"],
    "additionalProperties": False,
}


def compiled(**asked) -> Grammar:
    grammar = compile(StructuredOutputs(**asked), "auto", repr(asked))
    return grammar


@given(st.integers(0, 2**20), st.sampled_from([1, 2]))
@settings(max_examples=25, deadline=None)
def test_answers_follow_their_grammars(library, seed: int, depth: int):
    wanted = [REGEXES[(seed + n) % len(REGEXES)] for n in range(4)]
    requests = [request(uid, compiled(regex=one)) for uid, one in enumerate(wanted)]
    requests.append(request(10, compiled(json=SCHEMA)))
    requests.append(request(11, None, most=30))
    requests += [request(20 + n, compiled(regex=one), logprobs=1) for n, one in enumerate(wanted)]
    made = engine(library, seed, depth)
    whole = run(made, requests)
    for r in requests:
        delta = whole[r.uid]
        assert delta.done in ("stop", "length"), delta.error
        assert len(delta.tokens) <= r.sampling.max_tokens
        if r.uid >= 20:
            assert len(delta.logprobs) == len(delta.tokens)
        if delta.done == "stop" and r.uid == 10:
            json.loads(text(delta))
        elif delta.done == "stop":
            assert re.fullmatch(wanted[r.uid % 10], text(delta)), text(delta)
    assert len(whole[11].tokens) == 30 and all(97 <= t < 123 for t in whole[11].tokens)


BEGUN, ENDED, AFTER = *encode("true"), *encode("  "), encode('": me')


@given(st.integers(0, 2**20), st.sampled_from([1, 2]))
@settings(max_examples=25, deadline=None)
def test_a_grammar_begins_when_a_thought_has_ended(library, seed: int, depth: int):
    """One that the prompt has begun, and one that the model may begin; each with jumps and without,
    for automata and for llguidance."""
    grammars = [compiled(regex=one) for one in REGEXES[:2]] + [guided(REGEXES[0])]
    requests = [
        request(
            8 * begin + 4 * logprobs + n,
            replace(grammar, thought=Thought(ENDED, AFTER, BEGUN if begin else None)),
            logprobs=0 if logprobs else None,
        )
        for n, grammar in enumerate(grammars)
        for begin in (False, True)
        for logprobs in (False, True)
    ]
    whole = run(engine(library, seed, depth, likes=(BEGUN, ENDED)), requests)
    for r in requests:
        delta, answer = whole[r.uid], whole[r.uid].tokens
        assert delta.done in ("stop", "length"), delta.error
        assert len(delta.logprobs) == (0 if r.sampling.logprobs is None else len(answer))
        if r.uid < 8 or answer[0] == BEGUN:
            ended = answer.index(ENDED) + 1 if ENDED in answer else len(answer)
            assert END not in answer[:ended]
            gap, answer = answer[ended : ended + len(AFTER)], answer[ended + len(AFTER) :]
            assert gap == AFTER[: len(gap)]
        if delta.done == "stop":
            said = text(Delta(0, tokens=answer))
            assert re.fullmatch(REGEXES[r.uid % 4 % 2], said), said


def embedded_tokens() -> Tokens:
    text = Text.from_gguf(GGUF.open(embedded.find()))
    return Tokens(text.pieces(True), text.eos, lambda said: text.encode(said, False))


def test_what_follows_a_thought_is_cut_as_the_tokenizer_cuts():
    """With a real vocabulary; one of its special tokens ends the thought."""
    read = embedded_tokens()
    size, ended = len(read.pieces), next(t for t, piece in enumerate(read.pieces) if not piece)
    ended = next(t for t in range(ended, size) if not read.pieces[t] and t not in read.ends)
    own, after = Library(embedded_tokens, size, processes=1), list(read.encode("\n\n"))
    regex = r'\{"name": "[a-z]{1,9}", "children": [0-9]\}'
    grammar = replace(compiled(regex=regex), thought=Thought(ended, after))
    wanted = [request(uid, grammar) for uid in range(4)]
    for delta in run(engine(own, likes=[ended]), wanted).values():
        assert delta.done == "stop"
        answer = delta.tokens[delta.tokens.index(ended) + 1 :]
        said = b"".join(read.pieces[token] for token in answer).decode()
        assert re.fullmatch("\n\n" + regex, said), said
        assert answer[: len(after) + 3] == after + list(read.encode('{"name": "x"'))[:3]
    own.close()


def test_forced_tokens_are_cut_as_the_tokenizer_cuts_and_cost_no_step(library):
    grammar = compiled(regex=r'\{"name": \["é", "é"\], "age": [ab]\}')
    jumping, stepping = engine(library), engine(library)
    jumped = run(jumping, [request(1, grammar)])[1]
    stepped = run(stepping, [request(1, grammar, logprobs=0)])[1]
    assert re.fullmatch(r'\{"name": \["é", "é"\], "age": [ab]\}', text(jumped))
    body = text(jumped)
    assert jumped.tokens[: len(encode(body)) - 4] == encode(body)[: len(encode(body)) - 4]
    assert len(jumping.executor.plans) <= len(stepping.executor.plans) // 2
    assert jumped.done == stepped.done == "stop"


def test_an_answer_ends_where_nothing_can_be_added(library):
    delta = run(engine(library), [request(1, compiled(choice=["é12true"]))])[1]
    assert text(delta) == "é12true" and delta.done == "stop" and END not in delta.tokens


@pytest.mark.parametrize("most", [1, 2, 3, 5, 8])
def test_max_tokens_cuts_a_jump(library, most: int):
    grammar = compiled(regex='[xy]name: true, "age": 12 and so on[xy]')
    delta = run(engine(library), [request(1, grammar, most=most)])[1]
    assert (len(delta.tokens), delta.done) == (most, "length")


def test_a_stop_token_inside_a_jump_ends_the_answer(library):
    stop = encode("12")[0]
    r = request(1, compiled(regex="[xy]name: 12 and so on[xy]"))
    r.sampling = Sampling(max_tokens=50, stops=[END, stop])
    delta = run(engine(library), [r])[1]
    assert delta.done == "stop" and delta.tokens[-1] == stop and text(delta).endswith("name: 12")


def test_a_request_aborted_while_its_grammar_opens_ends(library):
    made = engine(library)
    slow = request(1, compiled(json=SCHEMA))
    made.add(slow)
    made.abort(1)
    (delta,) = [delta for _ in range(3) for delta in made.step()]
    assert delta.done == "abort" and not made.busy


def test_a_grammar_that_cannot_be_opened_ends_its_request_alone(library):
    broken = Grammar("broken", "automaton", b"nonsense")
    nonsense = Grammar("nonsense", "guidance", b"{")
    whole = run(
        engine(library), [request(1, broken), request(2, nonsense), request(3, None, most=5)]
    )
    for uid in (1, 2):
        assert whole[uid].done == "error" and "could not be opened" in whole[uid].error
    assert whole[3].done == "length"


def guided(regex: str) -> Grammar:
    return compile(StructuredOutputs(regex=regex), "guidance", regex)


def steps(made: Engine, requests: list[Request], count: int) -> dict[int, list[int]]:
    """The tokens that some steps bring."""
    for r in requests:
        made.add(r)
    found: dict[int, list[int]] = {r.uid: [] for r in requests}
    while sum(map(len, found.values())) < count:
        for delta in made.step():
            assert not delta.error
            found[delta.uid] += delta.tokens
    return found


def test_a_panic_beside_the_engine_ends_its_request_alone(library):
    requests = [request(1, guided(f"[xy]{PANIC}[xy]")), request(2, None, most=5)]
    whole = run(engine(library), [*requests, request(3, compiled(json=SCHEMA))])
    assert whole[1].done == "error" and "in another language" in whole[1].error
    assert whole[2].done == "length" and not whole[3].error


def test_who_takes_too_long_is_ended_alone():
    own = Library(tokens, SIZE, processes=1)
    own._guidances[0]._following.seconds = 0.1
    made = engine(own)
    whole = run(made, [request(1, guided(f"[xy]{HANG}[xy]")), request(2, None, most=5)])
    assert whole[1].done == "error" and "more than 0.1 s" in whole[1].error
    assert whole[2].done == "length"
    own._guidances[0]._following.seconds = 60.0
    assert text(run(made, [request(3, guided("abc?"))])[3]).startswith("ab")
    own.close()


def test_who_brings_the_process_down_ends_and_the_others_go_on(library):
    wanted = [request(uid, guided("[xy]{30}"), logprobs=0) for uid in (2, 3)]
    whole = run(engine(library), [request(1, guided(f"[xy]{CRASH}[xy]")), *wanted])
    assert whole[1].done == "error" and "has died" in whole[1].error
    for uid in (2, 3):
        assert re.fullmatch("[xy]{30}", text(whole[uid])), whole[uid]


def test_a_process_that_is_killed_loses_nothing(library):
    made = engine(library)
    wanted = [request(uid, guided(r"([a-f]|é|name: ){40}")) for uid in (1, 2)]
    begun = steps(made, wanted, 10)
    process = library._guidances[0]._process
    process._starting.join()
    process._process.kill()
    whole = run(made, [request(3, guided("[xy]{5}"))])
    for uid in (1, 2):
        assert whole[uid].done == "stop"
        said = begun[uid] + whole[uid].tokens
        assert re.fullmatch(r"([a-f]|é|name: ){40}", text(Delta(uid, tokens=said)))
    assert re.fullmatch("[xy]{5}", text(whole[3]))


def test_many_are_followed_by_several_processes():
    own = Library(tokens, SIZE, processes=2)
    whole = run(engine(own), [request(uid, guided("[a-f]{20}"), logprobs=0) for uid in range(12)])
    assert all(re.fullmatch("[a-f]{20}", text(one)) for one in whole.values())
    assert all(one._process is not None for one in own._guidances)
    own.close()


def nothing() -> Tokens:
    raise ValueError("no tokenizer")


def test_a_process_that_cannot_start_refuses_and_hangs_nobody():
    own = Library(nothing, SIZE)
    whole = run(engine(own), [request(1, guided("a")), request(2, None, most=5)])
    assert whole[1].done == "error" and "has died" in whole[1].error
    assert whole[2].done == "length"
    own.close()


def test_masks_of_those_that_ended_make_room_for_others(library):
    rows, made = library._guidances[0]._rows, []
    for _ in range(4):
        run(engine(library), [request(uid, guided("[xy]{3}")) for uid in range(8)])
        library.renew()
        made.append(rows._made)
    assert made[0] == made[-1] >= 8


def test_rows_closed_twice_close_no_other_file() -> None:
    rows = Rows(100)
    rows.close()
    reader, writer = os.pipe()  # the first of them has the number that was the rows'
    rows.close()
    assert os.write(writer, b"x") == 1 and os.read(reader, 1) == b"x"
    os.close(reader)
    os.close(writer)
