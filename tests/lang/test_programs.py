"""Programs on an engine whose greedy answer is its prompt again: every text is known by heart."""

import asyncio
import threading

import pytest

import weir
from tests import fakes
from tests.waiting import CEILING
from weir.client import Local
from weir.core import Delta
from weir.errors import BadRequest, ConfigError
from weir.lang.backend.base import Score
from weir.lang.loop import Crew
from weir.lang.scorers import SCORERS


class Counted(weir.Runtime):
    """Writes down what it is asked to do, in order."""

    def _take(self, client):
        self.asked = []
        super()._take(client)

    async def generate(self, prompt, settings):
        self.asked.append(("generate", prompt.text))
        async for piece in super().generate(prompt, settings):
            yield piece

    async def cache(self, prompt):
        self.asked.append(("cache", prompt.text))
        await super().cache(prompt)


@pytest.fixture
def backend():
    engine = fakes.FakeEngine(context=4096, requests=2000)
    runtime = Counted.of(Local(engine, fakes.text(), ["m"]))
    yield runtime
    runtime.shutdown()


def greedy(name, tokens, **settings):
    return weir.gen(name, max_tokens=tokens, temperature=0, **settings)


def test_text_and_values_follow_in_order(backend):
    @weir.function
    def program(s, word):
        s += word + greedy("first", 3) + "-"
        s += greedy("second", 2)
        return "returned"

    state = program.run("abc", backend=backend)
    assert state.text() == "abcabc-ab"
    assert (state["first"], state["second"], state.ret_value) == ("abc", "ab", "returned")
    assert state.get_meta_info("first")["completion_tokens"] == 3
    assert "first" in state and "third" not in state


def test_a_read_waits_for_that_value_alone(backend, monkeypatch):
    read, step = threading.Event(), fakes.FakeEngine.step

    def held(self):
        """What comes later is not computed before the first was read."""
        assert self.counters.generated_tokens < 20 or read.wait(CEILING)
        return step(self)

    monkeypatch.setattr(fakes.FakeEngine, "step", held)

    @weir.function
    def program(s):
        s += "ab" + greedy("soon", 1) + greedy("late", 100)
        assert s["soon"] == "a"
        read.set()

    state = program.run(backend=backend)
    assert len(state["late"]) == 100


def test_branches_run_side_by_side_and_join(backend):
    @weir.function
    def program(s):
        s += "start "
        with s.fork(3) as branches:
            branches += lambda i: f"<{i}>"
            branches += greedy("said", 6)
        s += "|" + ",".join(s["said"])

    state = program.run(backend=backend)
    assert state["said"] == ["start "] * 3
    assert state.text() == "start |start ,start ,start "
    assert backend.asked[0] == ("cache", "start ")  # the hint, before any branch
    assert sorted(backend.asked[1:]) == [("generate", f"start <{i}>") for i in range(3)]


def test_join_can_append_the_branches_texts(backend):
    @weir.function
    def program(s):
        s += "a"
        branches = s.fork(2)
        branches += ["b", "c"]
        branches.join("append")
        s += greedy("end", 3)

    assert program.run(backend=backend).text() == "abcabc"

    @weir.function
    def turns(s):
        s += weir.user("hi")
        branches = s.fork(2)
        branches += [weir.assistant("b"), weir.user("c")]
        branches.join("concate_and_append")
        s += weir.assistant("d")

    state = turns.run(backend=backend)
    assert state.text() == "user: hi\nassistant: b\nuser: c\nassistant: d\n"
    assert [turn["content"] for turn in state.messages()] == ["hi", "b", "c", "d"]


def test_a_branch_inherits_values_and_the_parent_may_go_on(backend):
    @weir.function
    def program(s):
        s += "xy" + greedy("x", 2)
        (branch,) = s.fork()
        branch += "!" + greedy("y", 1)
        s += "?"
        s["seen"] = branch["x"] + branch["y"]

    state = program.run(backend=backend)
    assert state["seen"] == "xyx"
    assert state.text() == "xyxy?"


def test_a_copy_is_joined_at_its_end_and_a_branch_is_appended_to_by_its_number(backend):
    @weir.function
    def program(s):
        s += "xy"
        with s.copy() as aside:
            aside += "!" + greedy("x", 2)
            s["seen"] = aside["x"]
        branches = s.fork(2)
        branches[1] += "?" + greedy("y", 3)
        branches.join()
        with pytest.raises(TypeError, match="append to it"):
            branches[0] = s

    state = program.run(backend=backend)
    assert (state["seen"], state["x"], state["y"]) == ("xy", ["xy"], [None, "xy?"])
    assert state.text() == "xy"


def test_what_fails_in_a_copy_names_the_programs_line(backend):
    @weir.function
    def program(s):
        with s.copy() as aside:
            aside += weir.select("x", ["a"]) + weir.gen("y", regex="(")

    with pytest.raises(weir.ProgramError, match=r"test_programs\.py:\d+: the pattern"):
        program.run(backend=backend)


def test_what_is_thought_is_a_variable_of_its_own(backend):
    said = "<think>\nhm\n</think>\n\nyes"

    @weir.function
    def program(s, prompt, model_type=None):
        s += prompt + weir.separate_reasoning(greedy("x", len(prompt)), model_type)

    state = program.run(said, backend=backend)
    assert (state["x"], state["x_reasoning_content"], state.text()) == ("yes", "hm", said + "yes")
    state = program.run("a</think>b", "deepseek-r1", backend=backend, stream=True)
    assert "".join(state.text_iter("x")) == "b" and state["x_reasoning_content"] == "a"
    state = program.run("no tags", backend=backend)
    assert (state["x"], state["x_reasoning_content"]) == ("no tags", "")
    with pytest.raises(weir.ProgramError, match="n must be 1"):
        program.run("abc", backend=backend, n=2)
    with pytest.raises(BadRequest, match="model_type must be one of"):
        weir.separate_reasoning(weir.gen("x"), "gpt-oss")
    with pytest.raises(BadRequest, match="a gen with a name"):
        weir.separate_reasoning(weir.gen())


def test_turns_are_written_by_the_chat_template(backend):
    @weir.function
    def program(s):
        s += weir.system("be brief")
        with s.user():
            s += "hello"
        s.assistant(greedy("answer", 4))
        s += weir.user("again")

    state = program.run(backend=backend)
    assert state.text() == "system: be brief\nuser: hello\nassistant: syst\nuser: again\n"
    assert state.messages() == [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": "syst"},
        {"role": "user", "content": "again"},
    ]


def test_a_scope_is_a_variable(backend):
    @weir.function
    def program(s):
        with s.var_scope("both"):
            s += "one " + greedy("x", 3)
        s += "."

    assert program.run(backend=backend)["both"] == "one one"

    @weir.function
    def nested(s):
        with s.var_scope("a"), s.var_scope("a"):
            s += "x"

    with pytest.raises(weir.ProgramError, match=r"test_programs.py:\d+: .* inside itself"):
        nested.run(backend=backend)


def test_a_failure_names_its_line_and_stays_with_its_readers(backend):
    @weir.function
    def program(s):
        s += "abc" + greedy("good", 1)
        s += weir.gen("bad", temperature=-1)
        s += greedy("after", 1)

    with pytest.raises(weir.ProgramError, match=r"test_programs.py:\d+: temperature must be"):
        program.run(backend=backend)
    (state,) = program.run_batch([{}], backend=backend)
    assert state["good"] == "a"
    for name in ("bad", "after"):
        with pytest.raises(weir.ProgramError, match="temperature must be"):
            state[name]
    assert "temperature" in str(state.error())


def test_a_failed_branch_fails_where_it_is_joined(backend):
    @weir.function
    def program(s):
        s += "a"
        branches = s.fork(2)
        branches += [greedy("x", 1), weir.gen("x", top_p=7)]
        branches.join()
        s["x"]

    with pytest.raises(weir.ProgramError, match="top_p"):
        program.run(backend=backend)


def test_a_failed_branch_that_nobody_reads_is_not_lost(backend):
    @weir.function
    def program(s, reads):
        s += "a"
        branch, other = s.fork(2)
        branch += weir.gen("x", top_p=7)
        other += greedy("x", 1)
        if reads:
            with pytest.raises(weir.ProgramError, match="top_p"):
                branch["x"]
        return other["x"]

    with pytest.raises(weir.ProgramError, match=r"test_programs.py:\d+: top_p must be"):
        program.run(reads=False, backend=backend)
    assert program.run(reads=True, backend=backend).ret_value == "a"


def test_a_prefix_that_cannot_be_cached_fails_at_those_who_need_it(backend):
    @weir.function
    def program(s, word):
        s += "x" * 5000
        branches = s.fork(2)
        branches += word
        branches += greedy("x", 1)
        branches.join()
        return s["x"]

    with pytest.raises(weir.ProgramError, match=r"test_programs.py:\d+: .* context length"):
        program.run("a", backend=backend)
    states = program.run_batch([["a"], ["b"]], backend=backend)
    assert all("context length" in str(state.error()) for state in states)


def test_an_engine_that_could_not_finish_is_an_error_of_the_program(backend, monkeypatch):
    failed = lambda self, request: Delta(request.uid, done="error", error="not a number")  # noqa: E731
    monkeypatch.setattr(fakes.FakeEngine, "_advance", failed)
    with pytest.raises(weir.ProgramError, match="not a number"):
        weir.function(lambda s: s.extend("a" + greedy("x", 1))).run(backend=backend)


def test_what_the_body_raises_comes_out_and_ends_what_is_under_way(backend):
    backend.client._engine.step_seconds = 0.01

    @weir.function
    def program(s, number):
        s += "abc" + greedy("long", 3000)
        return 1 // number

    with pytest.raises(ZeroDivisionError):
        program.run(0, backend=backend)
    (state,) = program.run_batch([[0]], backend=backend)
    with pytest.raises(weir.ProgramError, match="ZeroDivision"):
        state["long"]
    assert isinstance(state.failure, ZeroDivisionError)


def test_an_unknown_name_says_which_there_are(backend):
    @weir.function
    def program(s):
        s += "a" + greedy("x", 1)
        s["y"]

    with pytest.raises(KeyError, match=r"no variable 'y'; there are: x"):
        program.run(backend=backend)


def test_a_thousand_programs_that_read_take_no_thousand_threads(backend):
    seen, others = [], threading.active_count()

    @weir.function
    def program(s, i):
        s += f"{i:03d}" + greedy("x", 3)
        seen.append(threading.active_count())
        s += s["x"] + greedy("y", 2)

    states = program.run_batch([{"i": i} for i in range(1000)], backend=backend, num_threads=1000)
    assert [state["x"] for state in states] == [f"{i:03d}" for i in range(1000)]
    assert max(seen) - others < 20


def test_a_batch_is_bounded_and_in_order(backend):
    at_once, most = 0, 0

    @weir.function
    def program(s, i):
        nonlocal at_once, most
        s += "ab" + greedy("x", 1 + i % 5)
        at_once += 1
        most = max(most, at_once)
        s["x"]
        at_once -= 1

    batch = [{"i": i} for i in range(40)]
    found = program.run_batch(batch, backend=backend, num_threads=7, generator_style=True)
    assert [len(state["x"]) for state in found] == [1 + i % 5 for i in range(40)]
    assert most == 7


@pytest.mark.parametrize("count", [2, 5])
def test_what_programs_of_a_batch_say_alike_is_computed_first(backend, count):
    begun = []

    @weir.function
    def program(s, question):
        begun.append(question)
        s += "few-shot examples " * 10
        s += f"Q: {question}\nA:" + greedy("answer", 1)

    program.run_batch([{"question": one} for one in "abcde"[:count]], backend=backend)
    assert backend.asked[0] == ("cache", "few-shot examples " * 10 + "Q: ")
    assert [kind for kind, _ in backend.asked[1:]] == ["generate"] * count
    assert begun == list("abcde"[:count])  # each body once


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("at_once", [1, 2, 3, "auto"])
def test_a_batch_of_any_size_ends(backend, count, at_once):
    @weir.function
    def program(s, i):
        with s.user():
            s += "the same words for all of them, so that it is worth while " * (i < 2)
        assert i != 1 or count == 2, "fails before it asks for anything"
        s += weir.assistant(greedy("said", 3))
        return s["said"]

    states = program.run_batch([[i] for i in range(count)], backend=backend, num_threads=at_once)
    assert [state.error() is None for state in states] == [True, count == 2, True][:count]
    told = [text for kind, text in backend.asked if kind == "cache"]
    assert len(told) == (count == 2 and at_once in (3, "auto"))


def test_programs_call_bind_run_and_batch_one_another(backend):
    @weir.function
    def inner(s, word, length):
        s += word + greedy("said", length)
        return s["said"]

    @weir.function
    def outer(s, word):
        own = inner(s, word, length=2)
        once = inner.bind(length=3)("xyz" + word, backend=backend)["said"]
        pair = inner.run_batch([["pq", 1], {"word": "rs", "length": 2}], backend=backend)
        s += f"|{own}{once}" + ",".join(state["said"] for state in pair)

    states = outer.run_batch([{"word": "ab"}, ["cd"], {"word": "ef"}], backend=backend)
    words = ("ab", "cd", "ef")
    assert [state.text() for state in states] == [f"{w}{w}|{w}xyzp,rs" for w in words]


def test_a_branch_may_be_joined_twice_and_be_read_from_another_thread(backend):
    @weir.function
    def program(s):
        s += "ab"
        branches = s.fork(2)
        branches += greedy("x", 1)
        branches.join()
        s += "".join(s["x"])
        branches += greedy("y", 2)
        branches.join()

    state = program.run(backend=backend)
    assert (state.text(), state["x"], state["y"]) == ("abaa", ["a", "a"], ["ab", "ab"])
    found = []
    reader = threading.Thread(target=lambda: found.append(state["y"]))
    reader.start()
    reader.join(CEILING)
    assert found == [["ab", "ab"]]


def test_coroutines_are_programs_too(backend):
    @weir.function
    async def program(s, word):
        s += word + greedy("x", 2)
        s += await s.get("x")

    states = program.run_batch([{"word": w} for w in ("ab", "cd")], backend=backend)
    assert [state.text() for state in states] == ["ababab", "cdcdcd"]


def test_text_streams_as_it_appears(backend):
    @weir.function
    def program(s):
        s += "abc" + greedy("x", 3) + "." + greedy("y", 2)

    state = program.run(stream=True, backend=backend)
    assert list(state.text_iter("x")) == ["a", "b", "c"]
    assert [(e.text, e.name) for e in state.events()] == [
        ("abc", None), ("a", "x"), ("b", "x"), ("c", "x"), (".", None), ("a", "y"), ("b", "y")
    ]  # fmt: skip

    async def collect():
        state = program.run(stream=True, backend=backend)
        return [text async for text in state.text_async_iter()]

    assert "".join(asyncio.run(collect())) == "abcabc.ab"


def test_a_scope_streams_and_a_name_that_nothing_makes_is_refused(backend):
    @weir.function
    def program(s):
        s += "abc"
        with s.var_scope("both"):
            s += "-" + greedy("x", 2)
        s += "."

    state = program.run(stream=True, backend=backend)
    assert state["x"] == "ab"  # whether the body has come so far or not
    assert list(state.text_iter("both")) == ["-", "a", "b"]
    with pytest.raises(KeyError, match=r"test_programs.py:\d+: no variable 'z'"):
        list(state.text_iter("z"))
    with pytest.raises(KeyError, match="no variable 'z'"):
        state["z"]


def test_a_stream_that_fails_says_so(backend):
    @weir.function
    def program(s):
        s += "abc" + weir.gen("x", min_p=9)

    state = program.run(stream=True, backend=backend)
    with pytest.raises(weir.ProgramError, match="min_p"):
        list(state.text_iter())


def test_choices_are_scored_in_one_batch(backend):
    @weir.function
    def program(s):
        s += "pick " + weir.select("x", ["one", "three"]) + "!"

    state = program.run(backend=backend)
    assert state["x"] == "one"  # every logprob is -0.5 here, and the first of equals wins
    assert state.get_meta_info("x")["logprobs"] == {"one": [-0.5] * 3, "three": [-0.5] * 5}
    assert state.text() == "pick one!"


def test_choices_of_a_token_are_scored_after_nothing(backend):
    """The very first token of a text has no logprob, so the end of another goes before it."""
    alone = {"choices_method": "unconditional_likelihood_normalized"}
    state = weir.function(lambda s: s.extend(weir.select("x", ["a", "bc"], **alone))).run(
        backend=backend
    )
    assert state.get_meta_info("x")["logprobs"] == {"a": [-0.5], "bc": [-0.5] * 2}
    assert state.get_meta_info("x")["scores"] == {"a": 0.0, "bc": 0.0}


def test_scorers():
    short, long = Score([1], [-1.0]), Score([2, 3], [-0.9, -3.0])
    assert SCORERS["token_length_normalized"]([short, long], []) == [-1.0, -1.95]
    assert SCORERS["greedy_token_selection"]([short, long], []) == [0.0, 1.0]
    alone = [Score([1], [-5.0]), Score([2, 3], [-1.0, -1.0])]
    rated = SCORERS["unconditional_likelihood_normalized"]([short, long], alone)
    assert rated == pytest.approx([4.0, -0.95])


def test_greedy_selection_lets_an_ended_choice_stand_with_its_mean():
    ended, goes_on = Score([1], [-0.2]), Score([1, 2], [-0.2, -0.1])
    assert SCORERS["greedy_token_selection"]([ended, goes_on], []) == [0.0, 1.0]
    unlikely = Score([1, 2], [-0.2, -0.3])
    assert SCORERS["greedy_token_selection"]([ended, unlikely], []) == [1.0, 0.0]


def test_a_program_without_choices_of_its_own_becomes_a_graph():
    @weir.function
    def program(s, topic):
        s += f"About {topic}: "
        branches = s.fork(2)
        branches += weir.gen("part")
        s += "So: " + branches[0]["part"] + weir.gen("end")
        branches.join()

    graph = program.trace()
    nodes = [(step.stream, type(step.node).__name__) for step in graph.steps]
    assert nodes == [
        (0, "Text"), (0, "Abstract"), (0, "Text"), (0, "Fork"), (1, "Gen"), (2, "Gen"),
        (0, "Text"), (0, "Abstract"), (0, "Gen"), (0, "Join"),
    ]  # fmt: skip
    assert "style=dashed" in graph.dot() and graph.dot().count("->") == 12


def test_a_program_that_looks_at_a_value_cannot_be_traced():
    @weir.function
    def looks(s, n):
        for _ in range(n):
            s += "x"

    @weir.function
    def compares(s):
        s += weir.gen("x")
        if s["x"] == "yes":
            s += "!"

    for program in (looks, compares):
        with pytest.raises(weir.ProgramError, match="cannot be traced"):
            program.trace()
    assert len(looks.trace(n=2).steps) == 2


def test_bad_programs_are_refused_with_a_sentence(backend):
    with pytest.raises(BadRequest, match="one of dtype, regex"):
        weir.gen("x", dtype=int, regex="a")
    with pytest.raises(BadRequest, match="dtype must be one of int"):
        weir.gen("x", dtype=list)
    with pytest.raises(BadRequest, match="at least one choice"):
        weir.select("x", [])
    with pytest.raises(BadRequest, match="choices_method must be one of"):
        weir.select("x", ["a"], choices_method="best")
    with pytest.raises(TypeError, match="must take the state"):
        weir.function(lambda: None)
    with pytest.raises(TypeError, match="must not yield"):
        weir.function(lambda s: (yield s))
    with pytest.raises(TypeError, match="int cannot be appended"):
        weir.function(lambda s: s.extend(3)).run(backend=backend)
    with pytest.raises(BadRequest, match="not valid JSON"):
        weir.gen("x", json_schema='{"type":')
    text = weir.gen("x", json_schema='{"type": "integer"}')
    assert text.settings == weir.gen("x", json_schema={"type": "integer"}).settings
    with pytest.raises(BadRequest, match="a list of at least one choice"):
        weir.select("x", "yes")
    with pytest.raises(TypeError, match="'ab'"):
        weir.function(lambda s, a: s.extend(a)).run_batch(["ab"], backend=backend)
    with pytest.raises(TypeError, match="belong into the batch"):
        weir.function(lambda s, a: s.extend(a)).run_batch([["b"]], a="c", backend=backend)
    with pytest.raises(ValueError, match="'auto' or positive"):
        weir.function(lambda s: s.extend("a")).run_batch([[]], num_threads=0, backend=backend)
    with pytest.raises(ValueError, match="1 values for 2 branches"):
        weir.function(lambda s: s.fork(2).__iadd__(["a"])).run(backend=backend)
    with pytest.raises(ValueError, match="not 'sideways'"):
        weir.function(lambda s: s.fork(2).join("sideways")).run(backend=backend)
    with pytest.raises(BadRequest, match="same choice twice"):
        weir.gen("x", choices=["a", "a"])
    with pytest.raises(BadRequest, match="temperature must be 0"):
        weir.select("x", ["a"], temperature=0.5)
    with pytest.raises(TypeError, match="'question' is no setting of gen, nor an argument: q"):
        weir.function(lambda s, q: s.extend(q)).run(question="a", backend=backend)
    with pytest.raises(weir.ProgramError, match="text only"):
        weir.function(lambda s: s.extend(weir.image("a.png") + greedy("x", 1))).run(backend=backend)
    with pytest.raises(weir.ProgramError, match=r"test_programs.py:\d+: .* inside one of 'user'"):
        weir.function(lambda s: s.user(weir.system("a"))).run(backend=backend)
    with pytest.raises(ValueError, match="at least one branch"):
        weir.function(lambda s: s.fork(0)).run(backend=backend)
    with pytest.raises(ConfigError, match="set_default_backend"):
        weir.function(lambda s: s.extend("a")).run()


def test_a_crew_of_one_still_finishes_everything():
    assert list(Crew(1).run([lambda i=i: i for i in range(5)])) == [0, 1, 2, 3, 4]
