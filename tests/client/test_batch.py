"""Batch files: every line once, whatever is in it, and however often the run is killed."""

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from tests import fakes
from tests.waiting import until
from weir.batch import Summary, process, run, run_batch
from weir.batch.files import opened
from weir.client import Local
from weir.config import Config
from weir.errors import ConfigError, EngineDead
from weir.http import HttpError
from weir.server.app import create_app


def request(custom_id, url="/v1/completions", **body) -> str:
    body = {"model": "m", "temperature": 0, "max_tokens": 4} | body
    line = {"custom_id": custom_id, "method": "POST", "url": url, "body": body}
    return json.dumps(line)


def answers(target: Path) -> list[dict]:
    return [json.loads(line) for line in target.read_bytes().splitlines()]


@pytest.fixture
def files(tmp_path):
    return tmp_path / "in.jsonl", tmp_path / "out.jsonl"


def answer(app, source: Path, target: Path, **options) -> Summary:
    async def main():
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://weir") as http:
            return await process(source, target, http, hidden=True, **options)

    return asyncio.run(main())


def test_every_route_and_every_kind_of_bad_line(files, text):
    """Through the real HTTP application, so that a batch means what requests online mean."""
    source, target = files
    talk = [{"role": "user", "content": "hi"}]
    spoken = {"input": "hi", "temperature": 0, "max_output_tokens": 4}
    lines = [
        request("text", prompt="ab"),
        request("chat", "/v1/chat/completions", messages=talk),
        json.dumps({"custom_id": "vector", "url": "/v1/embeddings", "body": {"input": "abc"}}),
        "",
        request("text", prompt="again"),
        "{not json",
        '{"body": {}}',
        request("where", "/v1/images"),
        request("long", prompt="x" * 500),
        request("stranger", prompt="x", model="other"),
        request("stream", prompt="x", stream=True),
        json.dumps({"custom_id": "item", "url": "/v1/responses", "body": spoken}),
    ]
    source.write_text("\n".join(lines))

    async def main():
        client = Local(fakes.FakeEngine(), text, ["m"])
        await client.start()
        transport = httpx.ASGITransport(create_app(client, Config()))
        async with httpx.AsyncClient(transport=transport, base_url="http://weir") as http:
            summary = await process(source, target, http, hidden=True)
        await client.close()
        return summary

    summary = asyncio.run(main())
    by_id = {line["id"]: line for line in answers(target)}
    assert sorted(by_id) == sorted(f"line-{n}" for n in (1, 2, 3, *range(5, 13)))
    body = by_id["line-1"]["response"]["body"]
    assert by_id["line-1"]["custom_id"] == "text" and body["choices"][0]["text"] == "abab"
    assert by_id["line-2"]["response"]["body"]["choices"][0]["message"]["content"] == "user"
    assert by_id["line-3"]["response"]["body"]["data"][0]["embedding"] == [1.0, 3.0]
    assert by_id["line-12"]["response"]["body"]["output"][0]["content"][0]["text"] == "user"
    codes = {
        name: (line["error"] or {}).get("code")
        or (line["response"]["body"].get("error") or {}).get("code")
        for name, line in by_id.items()
    }
    assert (
        codes["line-5"] == "duplicate_custom_id" and "line 1" in by_id["line-5"]["error"]["message"]
    )
    assert codes["line-6"] == codes["line-7"] == "invalid_line"
    assert codes["line-8"] == "invalid_url" and codes["line-11"] == "invalid_body"
    assert codes["line-9"] == "context_length_exceeded" and codes["line-10"] == "model_not_found"
    assert (summary.total, summary.succeeded, summary.failed) == (11, 4, 7)
    assert summary.problems["invalid_line"] == 2


def test_a_url_that_is_none_is_refused_at_once(files):
    with pytest.raises(HttpError, match="'localhost:8000' is no address"):
        run_batch(*files, base_url="localhost:8000")


class Echo:
    """Answers with the prompt, after `trouble(n)` has had a say about the nth request."""

    def __init__(self, trouble=lambda n: None):
        self.trouble = trouble
        self.seen: list[str] = []
        self.app = Starlette(routes=[Route("/v1/completions", self.answer, methods=["POST"])])

    async def answer(self, request: Request) -> JSONResponse:
        prompt = (await request.json())["prompt"]
        self.seen.append(prompt)
        if (trouble := self.trouble(len(self.seen))) is not None:
            return trouble
        return JSONResponse({"prompt": prompt})


def test_a_finished_file_is_left_alone_and_a_longer_one_continued(files):
    source, target = files
    source.write_text("\n".join(request(str(at), prompt=f"p{at}") for at in range(5)))
    echo = Echo()
    assert answer(echo.app, source, target).succeeded == 5
    whole = target.read_bytes()
    summary = answer(echo.app, source, target)
    assert (summary.earlier, summary.succeeded) == (5, 0) and target.read_bytes() == whole
    with source.open("a") as file:
        file.write("\n" + request("more", prompt="p5"))
    assert answer(echo.app, source, target).succeeded == 1
    assert echo.seen == [f"p{at}" for at in range(6)]


@pytest.mark.parametrize("torn", range(1, 60, 7))
def test_a_torn_last_line_is_done_again(files, torn):
    source, target = files
    source.write_text("\n".join(request(str(at), prompt=f"p{at}") for at in range(3)))
    answer(Echo().app, source, target, concurrency=1)
    whole = target.read_bytes()
    target.write_bytes(whole[:-torn])
    echo = Echo()
    answer(echo.app, source, target)
    assert target.read_bytes() == whole and echo.seen == ["p2"]


def test_answers_of_another_input_are_not_mixed_in(files):
    source, target = files
    source.write_text(request("a", prompt="x"))
    answer(Echo().app, source, target)
    source.write_text(request("b", prompt="x"))
    with pytest.raises(ConfigError, match="choose another output"):
        answer(Echo().app, source, target)
    target.write_text('{"something": "else"}\n')
    with pytest.raises(ConfigError, match="other than answers"):
        answer(Echo().app, source, target)
    assert target.read_text() == '{"something": "else"}\n'
    with pytest.raises(ConfigError, match=r"missing\.jsonl"):
        answer(Echo().app, source.with_name("missing.jsonl"), target.with_name("new.jsonl"))
    assert not target.with_name("new.jsonl").exists()


def test_two_runs_do_not_share_an_output(files):
    source, target = files
    source.write_text(request("a", prompt="x"))
    with opened(target), pytest.raises(ConfigError, match="another run"):
        answer(Echo().app, source, target)


def test_a_busy_server_is_asked_again_and_a_failing_one_not_for_ever(files, monkeypatch):
    source, target = files
    source.write_text("\n".join(request(str(at), prompt=f"p{at}") for at in range(2)))
    busy = JSONResponse({}, status_code=503, headers={"retry-after": "0.1"})
    echo = Echo(lambda n: busy if n <= 3 else None)
    assert answer(echo.app, source, target).succeeded == 2
    target.unlink()
    broken = Echo(lambda n: JSONResponse({"error": {"code": "boom"}}, status_code=500))
    monkeypatch.setattr(asyncio, "sleep", _no_sleep(asyncio.sleep))
    summary = answer(broken.app, source, target)
    assert (summary.failed, dict(summary.problems)) == (2, {"boom": 2})
    assert len(broken.seen) == 2 * (1 + run.RETRIES)


def test_a_server_that_was_busy_may_fail_as_often_as_another(files, monkeypatch):
    source, target = files
    source.write_text(request("a", prompt="x"))
    monkeypatch.setattr(asyncio, "sleep", _no_sleep(asyncio.sleep))
    said = [503] * 5 + [500] * run.RETRIES
    echo = Echo(lambda n: JSONResponse({}, status_code=said[n - 1]) if n <= len(said) else None)
    assert answer(echo.app, source, target).succeeded == 1


def test_when_nobody_answers_the_run_stops_and_keeps_what_it_has(files, monkeypatch):
    source, target = files
    source.write_text("\n".join(request(str(at), prompt=f"p{at}") for at in range(10)))
    monkeypatch.setattr(asyncio, "sleep", _no_sleep(asyncio.sleep))
    gone = JSONResponse({"error": "dead"}, status_code=503)
    echo = Echo(lambda n: gone if n > 4 else None)
    with pytest.raises(EngineDead, match="run again to go on"):
        answer(echo.app, source, target, concurrency=1)
    assert [line["custom_id"] for line in answers(target)] == ["0", "1", "2", "3"]
    assert answer(Echo().app, source, target).earlier == 4
    assert sorted(line["custom_id"] for line in answers(target)) == [str(at) for at in range(10)]


def _no_sleep(sleep):
    return lambda seconds, *rest: sleep(0, *rest)


PROGRAM = """
import asyncio, sys
from pathlib import Path
import httpx
from tests.client.test_batch import Echo, answer
from starlette.responses import JSONResponse
class Slow(Echo):
    async def answer(self, request):
        while len(self.seen) >= int(sys.argv[3]):
            await asyncio.sleep(1)
        return await super().answer(request)
answer(Slow().app, Path(sys.argv[1]), Path(sys.argv[2]), concurrency=4)
"""


def test_killed_again_and_again(files):
    """However often the run is killed: in the end each line has one answer, its own. Each run but
    the last stops answering before it is done."""
    source, target = files
    lines = 600
    source.write_text("\n".join(request(str(at), prompt=f"p{at}") for at in range(lines)))
    before = 0
    for most in (300, 50, 200, lines):
        command = [sys.executable, "-c", PROGRAM, str(source), str(target), str(most)]
        with subprocess.Popen(command) as run:
            if most < lines:
                until(lambda size=before: target.exists() and target.stat().st_size > size)
                run.kill()
        if most < lines:
            with target.open("ab") as file:  # as if it had been killed while it wrote
                file.write(b'{"id": "line-99999", "custom')
            before = target.stat().st_size
    assert run.returncode == 0
    found = {line["custom_id"]: line["response"]["body"]["prompt"] for line in answers(target)}
    assert found == {str(at): f"p{at}" for at in range(lines)}
    assert len(answers(target)) == lines
