"""An engine process that dies, hangs or cannot start: everybody is answered and nothing is left."""

import asyncio
import logging
import os
import signal
import subprocess
import sys

import msgspec
import pytest
import zmq

from tests.client.conftest import left_behind, more
from tests.waiting import alive, eventually, until
from weir.client import Remote
from weir.client import process as process_module
from weir.client import remote as remote_module
from weir.client.process import Timeouts
from weir.errors import EngineDead, Overloaded
from weir.params import SamplingParams
from weir.wire import Fatal, encode

GREEDY = SamplingParams(temperature=0, max_tokens=8)
SLOW = Timeouts(heartbeat=60.0)  # this machine may be slow
SEEDED = SamplingParams(max_tokens=8, seed=5)


@pytest.fixture
def make(text, clean):
    def maker(config=None, factory="engine", **options):
        options = {"timeouts": SLOW} | options
        return Remote(config or {}, text, ["m"], factory=f"tests.fakes:{factory}", **options)

    return maker


async def ready(client):
    await eventually(lambda: client.health == "ready")


async def answers(streams):
    return await asyncio.gather(*(s.collect() for s in streams), return_exceptions=True)


def test_what_the_engine_logs_is_in_our_log(run, make, monkeypatch, caplog, capfd):
    logger = logging.getLogger("weir.fakes")
    monkeypatch.setattr(logger, "handlers", [caplog.handler])
    monkeypatch.setattr(logger, "propagate", False)

    async def main():
        client = make(factory="talking_engine")
        with caplog.at_level("INFO", "weir.fakes"):
            await client.start()
            await eventually(lambda: len(caplog.records) == 2)
        await eventually(lambda: "plain" in client._engine._reason())
        assert "gap" in client._engine._reason() and "all" not in client._engine._reason()
        await client.close()

    run(main)
    said = [(one.levelname, one.getMessage()) for one in caplog.records]
    assert said == [("WARNING", "mind the\ngap"), ("INFO", "that is all")]
    assert capfd.readouterr().err == "plain\n"


def test_what_an_engine_had_in_hand_the_next_one_goes_on_with(run, make, tmp_path):
    """The killer is replayed too: it kills once. Tokens are those an engine that lives makes."""
    drawn, written, refused = SamplingParams(max_tokens=300, seed=5), [], []

    async def main():
        client = make({"requests": 4, "step_seconds": 0.01, "context": 100_000})
        await client.start()
        (wanted,) = await client.submit("q", SEEDED).collect()
        (whole,) = await client.submit("x", drawn).collect()
        counted = client.stats.generated_tokens
        ended, real = [], client._restarting
        client.listeners.append(ended.append)

        def restarting(reason):
            real(reason)
            assert client.health.startswith("restarting: ") and "SIGKILL" in client.health
            with pytest.raises(Overloaded, match="starting") as caught:
                client.submit("x", GREEDY)
            refused.append(caught.value)

        client._restarting = restarting
        begun = client.submit("x", drawn)
        written.append(await anext(begun))
        killer = client.submit("k", GREEDY, user=f"die:{tmp_path / 'died'}", request_id="killer")
        queued = [client.submit("q", SEEDED, request_id=str(at)) for at in range(6)]
        assert [c.text for (c,) in await answers([killer])] == ["k" * 8]
        assert [c.token_ids for (c,) in await answers(queued)] == [wanted.token_ids] * 6
        written.extend([output async for output in begun])
        assert [token for one in written for token in one.token_ids] == whole.token_ids
        assert "".join(one.text for one in written) == whole.text
        assert begun.usage.completion_tokens == 300
        assert client.health == "ready" and client.restarts == 1 and refused
        told = {finished.id: finished for finished in ended}
        assert [told[name].replays for name in (begun.id, *"012345")] == [1] * 7
        order = [f.id for f in ended if f.id in "012345"]
        assert order == sorted(order)
        assert client.stats.generated_tokens >= counted + 7 * 8  # counters go on across engines
        assert sum(client.stats.step_requests.counts) == client.stats.step
        await client.close()

    run(main)


def test_a_second_death_ends_what_was_seen(run, make):
    async def main():
        client = make({"step_seconds": 0.01, "context": 100_000})
        await client.start()
        stream = client.submit("x", SamplingParams(max_tokens=90_000, n=2))
        await anext(stream)
        os.kill(client.model.info["pid"], signal.SIGKILL)
        await eventually(lambda: client.restarts == 1)
        os.kill(client.model.info["pid"], signal.SIGKILL)
        outputs = []
        with pytest.raises(EngineDead):
            async for output in stream:
                outputs.append(output)
        reasons = [o.finish_reason for o in outputs if o.finish_reason is not None]
        assert reasons == ["error", "error"] and "send it again" in outputs[-1].error
        await client.close()

    run(main)


def test_a_request_that_kills_every_engine_is_given_up(run, make):
    """The others are served all the same, and the engine is not taken for broken."""

    async def main():
        client = make({"requests": 1})
        await client.start()
        users = {"a": "", "b": "", "k": "die", "c": "", "d": ""}
        streams = {name: client.submit(name, GREEDY, user=user) for name, user in users.items()}
        ends = dict(zip(streams, await answers(streams.values()), strict=True))
        assert isinstance(ends["k"], EngineDead) and "given this request" in str(ends["k"])
        assert [ends[name][0].text for name in "abcd"] == [name * 8 for name in "abcd"]
        assert client.restarts == 3 and client.health == "ready"
        await client.close()

    run(main)


@pytest.mark.parametrize("how", ["hang", "stop"])
def test_a_hung_engine_is_noticed_and_replaced(run, make, how, tmp_path):
    """A step that does not end, and a process that gives no sign of life."""

    async def main():
        client = make(timeouts=Timeouts(step=0.6, heartbeat=1.2))
        await client.start()
        pid, free = client.model.info["pid"], tmp_path / "free"
        client._timeouts = SLOW  # of those after it
        if how == "stop":
            os.kill(pid, signal.SIGSTOP)
        waiting = client.submit("y", GREEDY, user=f"hang:{free}" if how == "hang" else "")
        await eventually(lambda: client.restarts == 1)
        assert client.model.info["pid"] != pid
        free.touch()
        assert (await waiting.collect())[0].text == "y" * 8
        assert (await client.submit("z", GREEDY).collect())[0].text == "z" * 8
        assert client.restarts == 1
        await client.close()

    run(main)


def test_a_step_may_be_long_as_long_as_there_are_signs_of_life(run, make, tmp_path, monkeypatch):
    monkeypatch.setattr(process_module, "INTERVAL", 0.05)

    async def main():
        client, free, heard = make(), tmp_path / "free", set()
        await client.start()
        stream = client.submit("x", SamplingParams(max_tokens=1), user=f"hang:{free}")
        await eventually(lambda: heard.add(client._engine._heard) or len(heard) > 4)
        assert not stream.assembly.finished
        free.touch()
        (completion,) = await stream.collect()
        assert completion.finish_reason == "length" and client.restarts == 0
        await client.close()

    run(main)


@pytest.mark.parametrize(
    ("factory", "config", "why"),
    [
        ("broken_engine", {"how": "raise"}, "the weights are not there"),
        ("broken_engine", {"how": "exit"}, "exit code 3: out of luck"),
        ("engine", {"no_such_setting": 1}, "no_such_setting"),
        ("no_such_factory", {}, "no_such_factory"),
    ],
)
def test_an_engine_that_cannot_start_says_why(run, make, factory, config, why):
    async def main():
        client = make(config, factory)
        with pytest.raises(EngineDead, match=why):
            await client.start()
        assert client.health.startswith("dead: ") and why in client.health
        with pytest.raises(Overloaded, match="dead"):
            client.submit("x", GREEDY)
        await client.close()

    run(main)


def test_an_engine_that_takes_too_long_to_start(run, make):
    async def main():
        client = make(timeouts=Timeouts(start=0.01))
        with pytest.raises(EngineDead, match=r"not ready after 0\.01 s"):
            await client.start()
        await client.close()

    run(main)


@pytest.mark.parametrize("after", [0.0, 0.001, 0.03])
def test_a_start_can_be_cancelled(run, make, after):
    async def main():
        client = make()
        starting = asyncio.create_task(client.start())
        await asyncio.sleep(0)  # so that it has begun
        await asyncio.sleep(after)
        starting.cancel()
        await asyncio.gather(starting, return_exceptions=True)
        await client.close()

    run(main)


def test_an_engine_that_keeps_dying_is_given_up(run, make, tmp_path, monkeypatch):
    """After so many in a row that did no work, the client is dead and says why."""
    monkeypatch.setattr(remote_module, "SUSPECT", 100)

    async def main():
        client = make()
        await client.start()
        stream = client.submit("x", GREEDY, user="raise")
        with pytest.raises(EngineDead, match="the device is lost"):
            await stream.collect()
        assert client.health.startswith("dead: ") and "the device is lost" in client.health
        assert client.restarts == remote_module.FAILURES - 1
        with pytest.raises(Overloaded, match="the device is lost"):
            client.submit("x", GREEDY)
        await client.close()

    monkeypatch.setattr(asyncio, "sleep", _hurried(asyncio.sleep))
    run(main)


def _hurried(sleep):
    return lambda seconds, *rest: sleep(min(seconds, 0.05), *rest)


def test_killed_again_and_again_under_load(run, make):
    """Eight engines are killed while forty callers keep asking, half of them before they have done
    anything: every request is answered, and nothing has been left behind when the last stands."""

    async def main():
        client = make({"requests": 16, "step_seconds": 0.001})
        before = left_behind()
        await client.start()
        held = None
        finished = []
        client.listeners.append(finished.append)
        counts = {"length": 0, "error": 0, "refused": 0}
        stop = asyncio.Event()

        async def caller(at):
            while not stop.is_set():
                try:
                    stream = client.submit([97 + at % 26] * 3, SamplingParams(max_tokens=1 + at))
                    (completion,) = await stream.collect()
                    assert completion.finish_reason == "length"
                    assert len(completion.token_ids) == 1 + at
                    counts["length"] += 1
                except EngineDead:
                    counts["error"] += 1
                except Overloaded as error:
                    assert error.retry_after > 0
                    counts["refused"] += 1
                    await asyncio.sleep(0.02)

        callers = [asyncio.create_task(caller(at)) for at in range(40)]
        for kill in range(8):
            await ready(client)
            if kill == 1:
                held = left_behind()[0]
            if kill % 2:
                await eventually(lambda: client._engine.worked)
            os.kill(client.model.info["pid"], signal.SIGKILL)
            await eventually(lambda before=kill: client.restarts > before)
        await eventually(lambda: counts["length"] > 40)
        stop.set()
        await asyncio.gather(*callers)
        assert client.restarts == 8
        assert len(finished) == counts["length"] + counts["error"]
        found = more(before)  # other tests in this process may have children of their own
        assert len(found["children"]) == len(found["folders"]) == 1
        assert left_behind()[0] <= held + 2
        await client.close()

    run(main)


def test_a_message_that_makes_no_sense_is_dropped(run, make):
    async def main():
        client = make()
        await client.start()
        process = client._engine
        for garbage in (b"", b"\xff\x00", msgspec.msgpack.encode({"type": "Submit", "uid": "x"})):
            process._socket.send_multipart([process._identity, garbage])
        assert (await client.submit("x", GREEDY).collect())[0].text == "x" * 8
        assert client.restarts == 0
        await client.close()

    run(main)


def test_where_no_unix_socket_can_be(run, make, monkeypatch):
    """Over loopback; messages of anyone who does not know the token count for nothing."""
    monkeypatch.setattr(process_module, "LONGEST_PATH", 0)

    async def main():
        client = make()
        await client.start()
        endpoint = client._engine._socket.get_string(zmq.LAST_ENDPOINT)
        assert endpoint.startswith("tcp://127.0.0.1:")
        with zmq.Context() as context, context.socket(zmq.DEALER) as stranger:
            stranger.connect(endpoint)
            stranger.send(encode(Fatal("says a stranger")), zmq.NOBLOCK)
            stranger.send_multipart([b"several", b"frames"], zmq.NOBLOCK)
            assert (await client.submit("x", GREEDY).collect())[0].text == "x" * 8
            await asyncio.sleep(0.3)
        assert client.health == "ready" and client.restarts == 0
        await client.close()

    run(main)


def test_closing_while_the_engine_is_being_replaced(run, make):
    """What waits for the new engine gets its time to drain too; nothing new is taken."""

    async def main():
        client = make()
        await client.start()
        os.kill(client.model.info["pid"], signal.SIGKILL)
        waiting = client.submit("x", GREEDY)
        while client.health == "ready":
            await asyncio.sleep(0.001)
        closing = asyncio.create_task(client.close(drain=60))
        await asyncio.sleep(0)
        assert client.health == "draining"
        (completion,) = await waiting.collect()
        assert completion.text == "x" * 8
        await closing

    run(main)


def test_the_engine_leaves_when_its_client_is_killed(tmp_path):
    """kill -9 of the server: no engine stays behind with the memory of the machine."""
    program = f"""
import asyncio, os, tempfile
tempfile.tempdir = {str(tmp_path)!r}
from tests import fakes
from weir.client import Remote
from weir.client import process as process_module
async def main():
    client = Remote({{}}, fakes.text(), ["m"], factory="tests.fakes:engine")
    await client.start()
    print(client.model.info["pid"], flush=True)
    await asyncio.sleep(600)
asyncio.run(main())
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as server:
        engine = int(server.stdout.readline())
        os.kill(engine, 0)
        server.kill()
    until(lambda: not alive(engine))
    assert list(tmp_path.iterdir()) == []
