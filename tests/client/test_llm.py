"""Offline use: batches in this thread, streams beside others, and what happens on Ctrl-C."""

import itertools
import json
import signal
import subprocess
import sys

import pytest

import weir
from tests import fakes
from weir import AsyncLLM, SamplingParams, StructuredOutputs, build, connect
from weir.client import Local
from weir.config import Config
from weir.errors import BadRequest, ConfigError, EngineDead, Overloaded
from weir.llm.offline import LLM

GREEDY = SamplingParams(temperature=0, max_tokens=8)


@pytest.fixture
def engine():
    return fakes.FakeEngine()


@pytest.fixture
def llm(engine, text):
    with LLM.of(engine, text) as llm:
        yield llm
    assert engine.closed and not engine.busy


def texts(outputs):
    return [output.outputs[0].text for output in outputs]


@pytest.mark.parametrize(
    ("prompts", "expected"),
    [
        ("hello", ["hellohel"]),
        ([104, 105], ["hihihihi"]),
        (["a", "bc"], ["aaaaaaaa", "bcbcbcbc"]),
        ([[97], [98, 99]], ["aaaaaaaa", "bcbcbcbc"]),
        ([], []),
    ],
)
def test_prompts_of_every_kind(llm, prompts, expected):
    assert texts(llm.generate(prompts, GREEDY)) == expected


def test_results_are_in_order_and_whole(llm):
    """Shorter ones end first, yet stay in their places."""
    params = [SamplingParams(temperature=0, max_tokens=30 - at) for at in range(30)]
    outputs = llm.generate(["ab"] * 30, params)
    assert [len(output.outputs[0].token_ids) for output in outputs] == [30 - at for at in range(30)]
    assert all(
        output.finished and output.outputs[0].finish_reason == "length" for output in outputs
    )
    assert outputs[0].prompt == "ab" and outputs[0].prompt_token_ids == list(b"ab")
    assert 0 < outputs[0].metrics.arrival <= outputs[0].metrics.first <= outputs[0].metrics.last


def test_results_are_told_in_order_each_as_soon_as_it_may(llm, engine):
    told = []
    params = [SamplingParams(temperature=0, max_tokens=count) for count in (4, 2, 9)]
    outputs = llm.generate(
        ["a", "b", "c"], params, told=lambda one: told.append((one, len(engine.live)))
    )
    assert [one for one, _ in told] == outputs and [one.finished for one in outputs] == [True] * 3
    assert [live for _, live in told] == [1, 1, 0]  # the second waited for the first, not the third


def test_a_listener_that_fails_ends_the_run(llm, engine):
    def full(_):
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        llm.generate(["a", "b"], [GREEDY, SamplingParams(max_tokens=200)], told=full)
    assert not engine.busy
    assert texts(llm.generate("a", GREEDY)) == ["a" * 8]


def test_one_call_at_a_time(llm):
    refused = []

    def again(_):
        with pytest.raises(BadRequest, match="another call") as caught:
            llm.generate("b", GREEDY)
        refused.append(caught.value)

    assert texts(llm.generate("a", GREEDY, told=again)) == ["a" * 8] and refused
    assert texts(llm.generate("b", GREEDY)) == ["b" * 8]


@pytest.mark.parametrize(
    ("prompts", "params", "says"),
    [
        (["a", "b" * 300], GREEDY, "prompt 1, counted from 0: .*maximum context"),
        (3, GREEDY, "a prompt must be text"),
        (b"ab", GREEDY, "a prompt must be text"),
        (["a", b"ab"], GREEDY, "a prompt must be text"),
        (["a", None], GREEDY, "a prompt must be text"),
        ({"prompt": "a"}, GREEDY, "a prompt must be text"),
        ([{"prompt_token_ids": [97]}], GREEDY, "a prompt must be text"),
        ("a", {"max_tokens": 3}, "params must be SamplingParams"),
        (["a"], [{"max_tokens": 3}], "params must be SamplingParams"),
    ],
)
def test_what_is_wrong_is_named(llm, prompts, params, says):
    with pytest.raises(BadRequest, match=says):
        llm.generate(prompts, params)


def test_choices_logprobs_and_stops(llm, engine):
    params = SamplingParams(
        temperature=0, max_tokens=9, n=2, stop="lo", logprobs=1, prompt_logprobs=0
    )
    (output,) = llm.generate("hello", params)
    for choice in output.outputs:
        assert (choice.text, choice.finish_reason, choice.stop_reason) == ("hel", "stop", "lo")
        assert [list(entry) for entry in choice.logprobs] == [[t] for t in b"hello"]
        assert choice.logprobs[0][ord("h")].token == "h"
        assert choice.cumulative_logprob == -0.5 * 5
    first, *rest = output.prompt_logprobs
    assert first is None and [list(entry) for entry in rest] == [[t] for t in b"ello"]
    assert not engine.live  # a stop string ends the engine's half too


def test_chat_and_embed(llm):
    talk = [{"role": "user", "content": "hi"}]
    (one,) = llm.chat(talk, GREEDY)
    assert one.outputs[0].text == "user: hi"
    assert texts(llm.chat([talk, talk], GREEDY)) == ["user: hi"] * 2
    assert llm.embed(["a", "abc"]) == [[1.0, 1.0], [1.0, 3.0]]
    assert llm.decode(llm.encode("é")) == "é"


def test_one_bad_prompt_refuses_all_before_any_is_run(llm, engine):
    with pytest.raises(BadRequest):
        llm.generate(["good", "bad" * 200], GREEDY)
    assert not engine.busy and engine.counters.prompt_tokens == 0
    with pytest.raises(BadRequest):
        llm.generate(["a", "b"], [GREEDY])
    assert texts(llm.generate("a", GREEDY)) == ["a" * 8]


def test_an_engine_that_is_lost(text, monkeypatch):
    engine = fakes.FakeEngine()
    llm = LLM.of(engine, text)
    with monkeypatch.context() as patch:
        patch.setattr(fakes.FakeEngine, "step", lambda self: 1 / 0)
        with pytest.raises(EngineDead, match="ZeroDivisionError"):
            llm.generate("a", GREEDY)


@pytest.mark.parametrize(("where", "at"), [("add", 0), ("add", 19), ("step", 0), ("step", 7)])
def test_interrupted_anywhere(llm, engine, monkeypatch, where, at):
    """Ctrl-C aborts what is live, the engine puts everything back, and it can be used again."""
    before, real, calls = signal.getsignal(signal.SIGINT), getattr(engine, where), itertools.count()

    def interrupted(_, *arguments):
        if next(calls) == at:
            signal.raise_signal(signal.SIGINT)
        return real(*arguments)

    monkeypatch.setattr(fakes.FakeEngine, where, interrupted)
    with pytest.raises(KeyboardInterrupt):
        llm.generate(["a"] * 20, SamplingParams(max_tokens=250, ignore_eos=True))
    assert not engine.busy
    assert engine.counters.step == (at + 2 if where == "step" else 1)  # the last one lets go
    assert signal.getsignal(signal.SIGINT) is before
    assert texts(llm.generate("a", GREEDY)) == ["a" * 8]


def test_async_outputs_grow_and_stay_as_they_were(run, text):
    async def main():
        async with AsyncLLM.of(Local(fakes.FakeEngine(), text, ["m"])) as llm:
            seen = [output async for output in llm.generate("hello", GREEDY)]
            assert [output.outputs[0].text for output in seen] == [
                "hellohel"[:at] for at in range(1, 9)
            ]
            assert [output.finished for output in seen] == [False] * 7 + [True]
            talk = [{"role": "user", "content": "hi"}]
            chat = [output async for output in llm.chat(talk, GREEDY)]
            assert chat[-1].outputs[0].text == "user: hi"
            assert await llm.embed("abc") == [1.0, 3.0]
            async for _ in llm.generate("a", SamplingParams(max_tokens=200), request_id="left"):
                break
            assert llm.abort("unknown") == 0
            with pytest.raises(BadRequest):
                await anext(llm.generate("a" * 1000))

    run(main)


def test_what_was_closed_says_so(text):
    closed = LLM.of(fakes.FakeEngine(), text)
    closed.close()
    with pytest.raises(EngineDead, match="was closed"):
        closed.generate("a", GREEDY)


def test_an_async_one_too(run, text):
    async def main():
        async with AsyncLLM.of(Local(fakes.FakeEngine(), text, ["m"])) as llm:
            pass
        with pytest.raises(Overloaded, match=r"^This client was closed: make another\.$"):
            await anext(llm.generate("a", GREEDY))
        digits = SamplingParams(structured_outputs=StructuredOutputs(regex="[0-9]+"))
        with pytest.raises(Overloaded, match="closed"):
            await anext(llm.generate("a", digits))

    run(main)


def test_an_async_one_that_nobody_started_says_so(run, text):
    async def main():
        llm = AsyncLLM.of(Local(fakes.FakeEngine(), text, ["m"]))
        with pytest.raises(EngineDead, match="`async with`"):
            await anext(llm.generate("a", GREEDY))
        with pytest.raises(EngineDead, match="`async with`"):
            await llm.embed("a")
        async with llm:
            assert await llm.embed("abc") == [1.0, 3.0]

    run(main)


def test_an_async_one_refuses_params_that_are_none(run, text):
    async def main():
        async with AsyncLLM.of(Local(fakes.FakeEngine(), text, ["m"])) as llm:
            with pytest.raises(BadRequest, match="params must be SamplingParams"):
                await anext(llm.generate("a", {"max_tokens": 3}))
            with pytest.raises(BadRequest, match="a prompt must be text"):
                await anext(llm.generate(None, GREEDY))

    run(main)


def test_an_async_one_in_this_process_logs_lengths_too(run, text, tmp_path, monkeypatch):
    monkeypatch.setattr(build, "engine", lambda config: fakes.FakeEngine())
    monkeypatch.setattr(connect, "text", lambda config: text)
    (tmp_path / "config.json").write_text("{}")
    log = tmp_path / "lengths.jsonl"

    async def main():
        settings = {"in_process": True, "served_model_name": ["m"], "length_log": str(log)}
        async with AsyncLLM(str(tmp_path), **settings) as llm:
            async for _ in llm.generate("ab", GREEDY):
                pass

    run(main)
    row = {"prompt": "ab", "output_tokens": 8.0, "cut": True, "model": "m", "source": ""}
    assert [json.loads(line) for line in log.read_text().splitlines()] == [row]


def test_the_package_is_light_until_it_is_used():
    program = (
        "import sys, weir; weir.SamplingParams, weir.StructuredOutputs; import weir.connect; "
        "print('torch' in sys.modules)"
    )
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert output.stdout.strip() == b"False"
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        weir.nothing  # noqa: B018


def test_params_that_nobody_gives_are_the_models(llm, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "generation_config.json").write_text('{"temperature": 0, "top_k": 7}')
    own, other = Config(model=str(tmp_path)), Config(model="m", generation_config=str(tmp_path))
    expected = SamplingParams(temperature=0, top_k=7)
    assert connect.sampling(own) == connect.sampling(other) == expected
    none = Config(model=str(tmp_path), generation_config="none")
    assert connect.sampling(none) == SamplingParams()
    with pytest.raises(ConfigError, match=r"there is no nowhere/generation_config\.json"):
        connect.sampling(Config(generation_config="nowhere"))
    llm.model.sampling = expected
    assert texts(llm.generate("ab")) == texts(llm.generate("ab", expected))
    assert llm._each(None, 2) == [expected] * 2
