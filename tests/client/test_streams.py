"""What both clients do with an engine that is well: the same tests on a thread and on a process."""

import asyncio
import random

import pytest

from tests.fakes import FakeEngine, tokens_of
from tests.waiting import eventually
from weir.client import Limits, Local, Remote
from weir.errors import BadRequest, Overloaded
from weir.params import SamplingParams

GREEDY = SamplingParams(temperature=0, max_tokens=8)


@pytest.fixture(params=["local", "remote"])
def make(request, text, clean):
    """Makes a client of either kind with a fake engine of the given settings."""

    def maker(limits: Limits | None = None, **settings):
        if request.param == "local":
            return Local(FakeEngine(**settings), text, ["m"], limits=limits)
        return Remote(settings, text, ["m"], factory="tests.fakes:engine", limits=limits)

    return maker


def test_a_request_from_submit_to_end(run, make):
    async def main():
        client = make()
        assert client.health == "starting"
        with pytest.raises(Overloaded):
            client.submit("too early", GREEDY)
        await client.start()
        assert (client.health, client.model.context) == ("ready", 256)
        ended = []
        client.listeners.append(ended.append)
        stream = client.submit("hello", GREEDY, user="me", priority=3, request_id="r1")
        (completion,) = await stream.collect()
        assert (completion.text, completion.finish_reason) == ("hellohel", "length")
        assert (stream.usage.prompt_tokens, stream.usage.completion_tokens) == (5, 8)
        timing = stream.timing
        assert 0 < timing.arrival <= timing.started <= timing.first <= timing.last
        (finished,) = ended
        (submit,) = finished.submits
        assert (finished.id, submit.user, submit.priority) == ("r1", "me", 3)
        assert client.stats.generated_tokens == 8 and client.stats.running == 0
        client.flush()
        await client.close()
        assert client.health.startswith("dead")
        with pytest.raises(Overloaded):
            client.submit("too late", GREEDY)
        assert client.rejected == {"not_ready": 2}

    run(main)


def test_many_at_once_each_get_their_own(run, make):
    async def main():
        client = make(requests=16)
        await client.start()
        rng = random.Random(0)
        wanted, streams = [], []
        for at in range(100):
            prompt = [rng.randrange(97, 123) for _ in range(rng.randrange(1, 40))]
            params = SamplingParams(temperature=at % 2, n=1 + at % 3, seed=at, max_tokens=at % 20)
            streams.append(client.submit(prompt, params))
            wanted.append([
                tokens_of(prompt, params.sampling(index=i, seed=at, eos=[], max_tokens=0).seed,
                          params.temperature, params.max_tokens)
                for i in range(params.n)
            ])  # fmt: skip
        answers = await asyncio.gather(*(stream.collect() for stream in streams))
        assert [[c.token_ids for c in completions] for completions in answers] == wanted
        await client.close()

    run(main)


def test_pooling_and_prompt_logprobs(run, make):
    async def main():
        client = make()
        await client.start()
        pooled = client.submit("four", SamplingParams(max_tokens=0), pool="mean")
        await pooled.collect()
        assert pooled.vector == [1.0, 4.0]
        scored = client.submit("abc", SamplingParams(max_tokens=0, prompt_logprobs=1))
        (completion,) = await scored.collect()
        assert (completion.text, completion.finish_reason) == ("", "length")
        assert [entry and entry.token for entry in scored.prompt_logprobs] == [None, "b", "c"]
        await client.close()

    run(main)


def test_leaving_a_stream_aborts_it(run, make):
    """By break, by an exception, by cancellation, by hand, and from outside by id."""

    async def main():
        client = make(step_seconds=0.002, context=100_000)
        await client.start()
        ended = []
        client.listeners.append(
            lambda finished: ended.append((finished.id, *finished.finish_reasons))
        )

        def submit(name):
            return client.submit("x", SamplingParams(max_tokens=90_000, n=2), request_id=name)

        async for _ in submit("break"):
            break
        with pytest.raises(ZeroDivisionError):
            async for _ in submit("exception"):
                raise ZeroDivisionError
        task = asyncio.create_task(submit("cancel").collect())
        await asyncio.sleep(0.02)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        stream = submit("hand")
        await anext(stream)
        stream.abort()
        stream.abort()
        outputs = [output async for output in stream]
        assert sorted(o.index for o in outputs if o.finish_reason == "abort") == [0, 1]
        stream = submit("id")
        assert client.abort("id") == 1 and client.abort("id") == 0 == client.abort("unknown")
        assert [c.finish_reason for c in await stream.collect()] == ["abort"] * 2
        submit("all 1"), submit("all 2")
        assert client.abort(None) == 2
        names = ["break", "exception", "cancel", "hand", "id", "all 1", "all 2"]
        await eventually(lambda: len(ended) == len(names))
        assert ended == [(name, "abort", "abort") for name in names]
        await client.submit("x", GREEDY).collect()
        await eventually(lambda: client.stats.running == 0)  # the engine let go of all of them
        await client.close()

    run(main)


def test_a_storm_of_aborts(run, make):
    async def main():
        client = make(requests=32)
        await client.start()
        ended = []
        client.listeners.append(ended.append)
        rng = random.Random(1)

        async def one(at):
            stream = client.submit([97] * 5, SamplingParams(max_tokens=50, seed=at))
            stop_after = rng.randrange(0, 60)
            async for _ in stream:
                stop_after -= 1
                if stop_after <= 0:
                    break

        for batch in range(2):
            await asyncio.gather(*(one(batch * 100 + at) for at in range(100)))
        await client.submit("x", GREEDY).collect()
        await eventually(lambda: len(ended) == 201)
        await eventually(lambda: client.stats.running + client.stats.waiting == 0)
        assert len({finished.id for finished in ended}) == 201
        await client.close()

    run(main)


def test_one_bad_request_ends_alone(run, make):
    async def main():
        client = make()
        await client.start()
        refused = client.submit("x", GREEDY, user="refuse")
        failed = client.submit("x", GREEDY, user="fail")
        good = client.submit("x", GREEDY)
        with pytest.raises(BadRequest):
            client.submit("x", SamplingParams(top_k=-7))
        (completion,) = await refused.collect()
        assert completion.finish_reason == "error" and "no room for this one" in completion.error
        (completion,) = await failed.collect()
        assert (completion.finish_reason, completion.error) == ("error", "not a number")
        assert (await good.collect())[0].finish_reason == "length"
        assert client.health == "ready"
        await client.close()

    run(main)


def test_what_msgpack_cannot_hold_is_refused(run, text, clean):
    async def main():
        client = Remote({}, text, ["m"], factory="tests.fakes:engine")
        await client.start()
        with pytest.raises(BadRequest):
            client.submit("x", GREEDY, priority=10**30)
        with pytest.raises(BadRequest):
            client.submit("x", GREEDY, user="\ud800")
        assert (await client.submit("x", GREEDY).collect())[0].text == "x" * 8
        await client.close()

    run(main)


@pytest.mark.parametrize(
    ("drain", "tokens", "reason"), [(60.0, 10, "length"), (0.05, 90_000, "abort")]
)
def test_close_drains_for_so_long(run, make, drain, tokens, reason):
    async def main():
        client = make(step_seconds=0.01, context=100_000)
        await client.start()
        stream = client.submit("x", SamplingParams(max_tokens=tokens))
        await anext(stream)
        closing = asyncio.create_task(client.close(drain))
        await asyncio.sleep(0)  # so that it has begun
        assert client.health == "draining"
        with pytest.raises(Overloaded):
            client.submit("x", GREEDY)
        (completion,) = await stream.collect()
        assert completion.finish_reason == reason
        await closing
        await client.close()  # again does nothing

    run(main)


def test_events_that_have_come_can_be_taken_at_once(run, make):
    async def main():
        client = make()
        await client.start()
        stream = client.submit("hello", GREEDY)
        await eventually(lambda: stream.assembly.finished)
        outputs = stream.ready()
        assert "".join(output.text for output in outputs) == "hellohel"
        assert stream.ready() == []
        with pytest.raises(StopAsyncIteration):
            await anext(stream)
        await client.close()

    run(main)


def test_a_local_engine_that_is_lost_tells_everybody(run, text, clean):
    async def main():
        client = Local(FakeEngine(), text, ["m"])
        await client.start()
        streams = [client.submit("x", GREEDY, user=user) for user in ("", "raise")]
        answers = await asyncio.gather(*(s.collect() for s in streams), return_exceptions=True)
        assert all("the device is lost" in str(answer) for answer in answers)
        assert "the device is lost" in client.health
        with pytest.raises(Overloaded, match="the device is lost"):
            client.submit("x", GREEDY)
        await client.close()

    run(main)
