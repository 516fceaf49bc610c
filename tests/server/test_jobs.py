"""A job is all or nothing, whatever happens between its first prompt and its last event."""

import asyncio

import pytest

from tests.fakes import FakeEngine, tokens_of
from tests.server.conftest import TEXT
from tests.waiting import CEILING, eventually
from weir.client import Limits, Local
from weir.config import Config
from weir.errors import BadRequest, EngineDead, Overloaded
from weir.params import SamplingParams
from weir.server.metrics import Metrics
from weir.server.service import LONG, Service

PARAMS = SamplingParams(max_tokens=5, temperature=0)


def run(test, *, limits: Limits | None = None, **engine):
    """`test(service, engine)` around a client that is started and closed."""

    async def main():
        made = FakeEngine(**engine)
        client = Local(made, TEXT, ["fake"], limits=limits)
        await client.start()
        try:
            return await asyncio.wait_for(
                test(Service(client, Config(), Metrics(client), None), made), CEILING
            )
        finally:
            await client.close()

    return asyncio.run(main())


async def idle(engine: FakeEngine) -> None:
    await eventually(lambda: not engine.live)


@pytest.mark.parametrize("count", [1, 3, 40])
def test_collect_puts_every_choice_in_its_place(count):
    async def test(service, engine):
        prompts = [list(range(1, 2 + i)) for i in range(count)]
        params = SamplingParams(n=2, max_tokens=7, temperature=0)
        job = await service.submit(prompts, params, request_id="x")
        done = await job.collect()
        service.finish(job)
        assert [one.index for one in done] == list(range(2 * count))
        assert [one.token_ids for one in done] == [
            tokens_of(prompt, 0, 0, 7) for prompt in prompts for _ in range(2)
        ]
        assert service.jobs == {}

    run(test)


@pytest.mark.parametrize("bad", [0, 1, 19, 39])
def test_one_bad_prompt_refuses_all(bad):
    async def test(service, engine):
        prompts = [[1, 2]] * 40
        prompts[bad] = [9999]
        with pytest.raises(BadRequest) as error:
            await service.submit(prompts, PARAMS, request_id="x", names={"prompt": "input"})
        assert error.value.param == f"input[{bad}]" and service.jobs == {}
        await idle(engine)

    run(test, step_seconds=0.01)


def test_a_full_queue_refuses_all():
    async def test(service, engine):
        with pytest.raises(Overloaded):
            await service.submit([[1]] * 10, PARAMS, request_id="x")
        assert service.jobs == {}
        await idle(engine)
        job = await service.submit([[1]], PARAMS, request_id="x")
        assert len((await job.collect())[0].token_ids) == 5

    run(test, limits=Limits(requests=4), requests=1, step_seconds=0.01)


@pytest.mark.parametrize("count", [1, 3])
def test_leaving_a_burst_early_leaves_no_task_behind(count):
    async def test(service, engine):
        job = await service.submit([[1, 2]] * count, SamplingParams(max_tokens=900), request_id="x")
        bursts = job.bursts()
        await anext(bursts)
        await bursts.aclose()
        service.finish(job)
        await idle(engine)
        await eventually(lambda: len(asyncio.all_tasks()) <= 2)

    run(test, context=1000, step_seconds=0.001)


@pytest.mark.parametrize("count", [1, 3])
def test_a_failed_choice_fails_the_job(count):
    async def test(service, engine):
        job = await service.submit([[1]] * count, PARAMS, request_id="x", user="fail")
        with pytest.raises(EngineDead, match="not a number"):
            await job.collect()
        service.finish(job)

    run(test)


def test_long_prompts_are_encoded_beside_the_event_loop():
    async def test(service, engine):
        text = "ab" * LONG
        job = await service.submit([text], PARAMS, request_id="x")
        assert job.streams[0].prompt_ids == list(text.encode())
        service.finish(job)
        job = await service.submit([text], PARAMS, request_id="y", truncate=3)
        assert bytes(job.streams[0].prompt_ids) == b"bab"
        service.finish(job)

    run(test, context=5 * LONG)


def test_the_prompts_of_a_job_have_ids_of_their_own():
    async def test(service, engine):
        job = await service.submit([[1], [2]], SamplingParams(max_tokens=200), request_id="x")
        assert [stream.id for stream in job.streams] == ["x-0", "x-1"]
        assert service.abort("chatcmpl-x") == 2
        assert {one.finish_reason for one in await job.collect()} == {"abort"}
        assert service.abort("x") == 0 and service.abort("unknown") == 0
        service.finish(job)

    run(test, step_seconds=0.01)
