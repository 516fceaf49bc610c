"""OpenAI batch files: one JSON request a line in, one JSON answer a line out.

A run that was killed is resumed by the same command: every line of the output names its line of
the input, so none is lost and none done twice. The requests go through the HTTP application, in
this process or on a server elsewhere, so that a batch means what the same requests online would.
"""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncGenerator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import httpx
import msgspec

from weir import connect
from weir.batch import files
from weir.batch.files import Answer, LineError, Response
from weir.config import Config
from weir.errors import ConfigError, EngineDead
from weir.http import address
from weir.progress import Bar, progress
from weir.server.app import create_app

ROUTES = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/embeddings")
PATIENCE = 300.0
"""Seconds for which a request is retried while the server is busy or cannot be reached."""
RETRIES = 3
"""Times that a request is retried after a server error."""


@dataclass(slots=True)
class Summary:
    """What a run did; `earlier` lines were done by runs before it, and `lost` of those failed."""

    total: int = 0
    earlier: int = 0
    lost: int = 0
    succeeded: int = 0
    failed: int = 0
    problems: Counter[str] = field(default_factory=Counter)  # error codes of what failed


def run_batch(
    source: Path,
    target: Path,
    config: Config | None = None,
    *,
    base_url: str | None = None,
    api_key: str | None = None,
    concurrency: int = 256,
    hidden: bool = False,
) -> Summary:
    """Answer every line of `source` that `target` has no answer for yet.

    config: of an engine in a process of its own; base_url: of a server, instead of it. concurrency:
    most requests in flight at once. hidden: no progress bar. Raises `ConfigError` if the files do
    not belong together, `HttpError` for an invalid URL, and `EngineDead` if no server or engine
    answers any more; the answers so far are kept.
    """
    if (config is None) == (base_url is None):
        raise ConfigError("a batch needs either a model or the URL of a server")
    if base_url is not None:
        address(base_url)
    files.identities(source)  # before a model is loaded for what cannot be read
    headers = {"Authorization": f"Bearer {api_key}"} if api_key and config is None else {}

    async def run() -> Summary:
        async with (
            _transport(config, concurrency) as transport,
            httpx.AsyncClient(
                transport=transport,
                base_url=base_url or "http://weir",
                headers=headers,
                timeout=None,
            ) as http,
        ):
            return await process(source, target, http, concurrency=concurrency, hidden=hidden)

    return asyncio.run(run())


@contextlib.asynccontextmanager
async def _transport(
    config: Config | None, concurrency: int
) -> AsyncGenerator[httpx.AsyncBaseTransport, None]:
    """The transport to a server or, without a network, to the HTTP application of this process."""
    if config is None:
        yield httpx.AsyncHTTPTransport(limits=httpx.Limits(max_connections=concurrency))
        return
    client = connect.remote(config)
    app = create_app(client, msgspec.structs.replace(config, api_key=[], tenant_keys=[]))
    await client.start()
    try:
        yield httpx.ASGITransport(app)
    finally:
        await client.close()


async def process(
    source: Path,
    target: Path,
    http: httpx.AsyncClient,
    *,
    concurrency: int = 256,
    hidden: bool = False,
) -> Summary:
    """As `run_batch`, through `http`, whose base URL is that of the server."""
    ids = files.identities(source)
    with files.opened(target) as output:
        done, lost = files.answered(output, target)
        files.check_resumable(target, ids, done)
        first: dict[str, int] = {}
        for number, custom_id in ids.items():
            if custom_id is not None:
                first.setdefault(custom_id, number)
        summary = Summary(total=len(ids), earlier=len(done), lost=lost)
        with (
            progress(len(ids), "answering", done=len(done), hidden=hidden) as bar,
            open(source, "rb") as lines,
        ):
            todo = ((n, line) for n, line in files.numbered(lines) if n not in done)
            workers = _Workers(http, output, first, summary, bar)
            try:
                async with asyncio.TaskGroup() as group:
                    for _ in range(min(concurrency, len(ids) - len(done))):
                        group.create_task(workers.work(todo))
            except BaseExceptionGroup as group:
                raise group.exceptions[0] from None
    return summary


@dataclass(slots=True)
class _Workers:
    """Tasks that share one iterator of lines and one output file."""

    http: httpx.AsyncClient
    output: IO[bytes]
    first: dict[str, int]  # custom_id → its first line
    summary: Summary
    bar: Bar

    async def work(self, todo: Iterator[tuple[int, bytes]]) -> None:
        for number, line in todo:
            self._write(await self._answer(number, line))

    def _write(self, answer: Answer) -> None:
        """Write and count an answer. Each is flushed, so that only the last can be incomplete."""
        self.output.write(msgspec.json.encode(answer) + b"\n")
        self.output.flush()
        response, summary = answer.response, self.summary
        if answer.failed:
            summary.failed += 1
            summary.problems[answer.error.code if answer.error else _code(response)] += 1
        else:
            summary.succeeded += 1
        usage = response.body.get("usage") if response and isinstance(response.body, dict) else None
        usage = usage or {}
        kinds = ("prompt", "input"), ("completion", "output")
        read, written = (sum(usage.get(f"{n}_tokens", 0) for n in names) for names in kinds)
        self.bar.advance(1, read, written)

    async def _answer(self, number: int, raw: bytes) -> Answer:
        answer = Answer(id=f"line-{number}", custom_id=files.identity(raw))
        try:
            line = msgspec.json.decode(raw, type=files.Line)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            answer.error = LineError("invalid_line", f"line {number}: {error}")
            return answer
        first = self.first[line.custom_id]
        if first != number:
            answer.error = LineError(
                "duplicate_custom_id",
                f"line {number}: custom_id {line.custom_id!r} was used in line {first}",
            )
        elif line.method != "POST" or line.url not in ROUTES:
            answer.error = LineError(
                "invalid_url",
                f"line {number}: {line.method} {line.url} is not POST to {', '.join(ROUTES)}",
            )
        elif line.body.get("stream"):
            answer.error = LineError("invalid_body", f"line {number}: a batch cannot stream")
        else:
            answer.response = await self._request(line)
        return answer

    async def _request(self, line: files.Line) -> Response:
        """Send one request, and retry it while the server is busy, unreachable or fails. Raises
        `EngineDead` after `PATIENCE`."""
        waited, failures = 0.0, 0
        while True:
            pause = 1.0
            try:
                reply = await self.http.post(line.url, json=line.body)
            except httpx.TransportError as error:
                why = f"the server cannot be reached: {error!r}"
            else:
                if reply.status_code == 503:
                    why = f"the server takes no requests: {reply.text[:500]}"
                    pause = _retry_after(reply)
                elif reply.status_code < 500 or failures == RETRIES:
                    return _response(reply)
                else:
                    why = f"the server failed: {reply.text[:500]}"
                    failures += 1
            if waited >= PATIENCE:
                raise EngineDead(f"{why}. What was answered is kept: run again to go on")
            waited += pause
            await asyncio.sleep(pause)


def _response(reply: httpx.Response) -> Response:
    try:
        body = msgspec.json.decode(reply.content)
    except msgspec.DecodeError:
        body = reply.text
    return Response(reply.status_code, reply.headers.get("x-request-id", ""), body)


def _retry_after(reply: httpx.Response) -> float:
    try:
        return min(30.0, max(0.1, float(reply.headers["retry-after"])))
    except (KeyError, ValueError):
        return 1.0


def _code(response: Response | None) -> str:
    body = response.body if response is not None else None
    error = body.get("error") if isinstance(body, dict) else None
    code = error.get("code") if isinstance(error, dict) else None
    return str(code or (response.status_code if response is not None else "unknown"))
