"""Timing and counting of one conversation, for every kind of API."""

import asyncio
import json
import time

import pytest

from tests.bench.fake_server import Fake
from weir.bench.client import ENDPOINTS, Target
from weir.bench.load import load
from weir.errors import ConfigError
from weir.http import Http
from weir.sim.report import measure
from weir.sim.workload import Item, Workload, poisson

TRIES = 10
"""A crowded machine may be late, but not each time."""


def target(server: Fake, backend: str = "openai", **more) -> Target:
    return Target(Http(server.url), backend, "fake", **more)


def script(**told) -> str:
    return json.dumps(told)


@pytest.mark.parametrize("backend", ENDPOINTS)
def test_times_and_tokens_of_one_request(server: Fake, backend: str) -> None:
    prompt = script(first=0.15, gap=0.04)
    said = [{"role": "user", "content": prompt}] if backend == "openai-chat" else prompt
    for _ in range(TRIES):
        record = asyncio.run(target(server, backend).request(said, 5))
        assert record.error == ""
        assert len(record.arrivals) == record.output_tokens == 5
        assert record.prompt_tokens == len(prompt.split())
        assert record.cached_tokens > 0
        assert record.text == "w0 w1 w2 w3 w4 "
        assert record.ttft > 0.14 and record.e2el > 0.3
        assert record.e2el == pytest.approx(record.ttft + sum(record.itl))
        assert record.tpot == pytest.approx(sum(record.itl) / 4)
        if record.ttft < 0.3 and all(0.03 < gap < 0.2 for gap in record.itl):
            return
    pytest.fail("the client was late each time")


def test_a_token_without_text_yet_is_a_token(server: Fake) -> None:
    record = asyncio.run(target(server).request(script(empty=True), 4))
    assert len(record.arrivals) == 3  # the last event of all, empty and final, is none
    assert record.output_tokens == 4  # the server's count


def test_an_empty_answer_is_an_answer(server: Fake) -> None:
    record = asyncio.run(target(server).request(script(empty=True), 1))
    assert record.error == ""
    assert len(record.arrivals) == 1


def test_events_packed_into_one_write_are_all_counted(server: Fake) -> None:
    record = asyncio.run(target(server).request(script(pack=True), 50))
    assert len(record.arrivals) == 50


@pytest.mark.parametrize(
    ("told", "reason"),
    [
        ({"status": 503}, "HTTP 503: told to refuse"),
        ({"fail_after": 2}, "told to fail"),
        ({"drop_after": 2}, "closed the connection"),
    ],
)
def test_failures_are_in_the_record(server: Fake, told: dict, reason: str) -> None:
    record = asyncio.run(target(server).request(script(**told), 5))
    assert reason in record.error
    assert record.end > record.start


def test_later_turns_hold_what_was_answered(server: Fake) -> None:
    item = Item("one", 2, turns=("two", "three"))
    records = asyncio.run(target(server, "openai-chat").converse(item))
    assert [record.error for record in records] == ["", "", ""]
    said = [(m["role"], m["content"]) for m in server.bodies[2]["messages"]]
    assert said == [
        ("user", "one"),
        ("assistant", "w0 w1 "),
        ("user", "two"),
        ("assistant", "w0 w1 "),
        ("user", "three"),
    ]


def test_a_failed_turn_ends_its_conversation(server: Fake) -> None:
    item = Item(script(status=500), 2, turns=("two",))
    assert len(asyncio.run(target(server, "openai").converse(item))) == 1


def test_what_is_sent(server: Fake) -> None:
    more = {"ignore_eos": True, "temperature": 0.5, "extra": {"top_k": 3}}
    asyncio.run(target(server, **more).request([1, 2, 3], 7))
    body = server.bodies[0]
    assert body["prompt"] == [1, 2, 3]
    assert body["max_tokens"] == 7
    assert body["ignore_eos"] is True
    assert (body["temperature"], body["top_k"]) == (0.5, 3)
    assert body["stream_options"] == {"include_usage": True}


def test_unknown_backend() -> None:
    with pytest.raises(ConfigError, match="openai-chat"):
        Target(Http("http://127.0.0.1:1"), "tgi", "m")


def test_the_cap_on_concurrency_holds(server: Fake) -> None:
    workload = Workload("w", [Item(script(gap=0.01), 3)] * 12)
    records, _ = asyncio.run(load(target(server), workload, concurrency=3))
    assert server.most_running == 3
    assert measure(records, 1.0).peak_concurrent == 3


def test_requests_leave_at_their_times(server: Fake) -> None:
    workload = Workload("w", [Item("x", 1, arrival=0.1 * i) for i in range(4)])
    for _ in range(TRIES):
        begin = time.perf_counter()
        records, seconds = asyncio.run(load(target(server), workload))
        late = [record.start - begin - 0.1 * i for i, record in enumerate(records)]
        assert min(late) > -0.01 and seconds > 0.29
        if max(late) < 0.09:
            return
    pytest.fail("the client was late each time")


def test_one_failure_among_many_is_one_failure(server: Fake) -> None:
    items = [Item("x", 3), Item(script(fail_after=1), 3), Item("y", 3)]
    workload = poisson(Workload("w", items), float("inf"), 1.0, 0)
    records, seconds = asyncio.run(load(target(server), workload))
    report = measure(records, seconds)
    assert (report.completed, report.failed) == (2, 1)
    assert report.output_tokens == 6
