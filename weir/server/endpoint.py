"""A route as data, and the ASGI app that serves it: decodes the body, runs the handler, replies.

A handler takes a `Call` and the decoded body. Its reply is a Struct, sent as JSON; an iterator of
frames, sent as server-sent events; or a Response. What it submitted to the engine is aborted when
it ends or the client disconnects.
"""

import asyncio
import logging
from codecs import BOM_UTF8
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import msgspec
from msgspec import Struct
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from weir.errors import BadRequest
from weir.params import SamplingParams
from weir.server.jobs import Job
from weir.server.problems import invalid, problem
from weir.server.service import Service

log = logging.getLogger(__name__)
encode = msgspec.json.Encoder().encode

START: dict[str, Any] = {
    "type": "http.response.start",
    "status": 200,
    "headers": [
        (b"content-type", b"text/event-stream; charset=utf-8"),
        (b"cache-control", b"no-cache"),
        (b"x-accel-buffering", b"no"),  # nginx must not hold frames back
    ],
}
DONE = b"data: [DONE]\n\n"

Reply = Struct | Sequence[Struct] | Response | AsyncGenerator[bytes, None]


class ClientGone(Exception):
    """The client closed its connection before the answer was complete."""


@dataclass(slots=True)
class Call:
    """One HTTP request on its way through a handler."""

    service: Service
    request: Request
    id: str
    tenant: str = ""  # that its API key belongs to
    job: Job | None = None

    async def submit(
        self,
        prompts: Sequence[str | list[int]],
        params: SamplingParams | Sequence[SamplingParams],
        *,
        request_id: str | None = None,
        user: str = "",
        **options: Any,
    ) -> Job:
        """`Service.submit`, which the call may do once.

        An X-Request-Id names a job too, but proxies repeat them: a second one gets a suffix."""
        if request_id is None:
            taken = self.id in self.service.jobs
            request_id = f"{self.id}-{uuid4().hex[:8]}" if taken else self.id
        self.job = await self.service.submit(
            prompts,
            params,
            request_id=request_id,
            traceparent=self.request.headers.get("traceparent"),
            user=self.service.keys.payer(self.tenant, user),
            **options,
        )
        return self.job


@dataclass(frozen=True, slots=True)
class Endpoint:
    path: str
    handler: Callable[[Call, Any], Awaitable[Reply]]
    summary: str
    methods: tuple[str, ...]
    body: type[Struct] | None = None  # from the JSON body; where there is none, from the query
    answer: Any = None  # type of the JSON answer; None: an empty one
    chunk: Any = None  # type of the events, where the answer can be streamed
    media: str = "application/json"
    aliases: tuple[str, ...] = ()
    generates: bool = False  # submits to the engine
    open: bool = False  # needs no API key


class Serving:
    """The ASGI app of one endpoint."""

    def __init__(self, endpoint: Endpoint, service: Service):
        self.endpoint = endpoint
        self.service = service
        self._decode = msgspec.json.Decoder(endpoint.body).decode if endpoint.body else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope)
        tenant = ""
        if not self.endpoint.open:
            key = f"Bearer {request.headers.get('x-api-key', '')}"  # as Anthropic's clients send it
            tenant = self.service.keys.tenant(request.headers.get("authorization", key))
        body = await self._body(request, receive)
        call = Call(self.service, request, scope["state"]["request_id"], tenant)
        try:
            if self.endpoint.generates:
                await unless_gone(receive, self._answer(call, body, scope, receive, send))
            else:
                await self._answer(call, body, scope, receive, send)
        finally:
            if call.job is not None:
                self.service.finish(call.job)

    async def _body(self, request: Request, receive: Receive) -> Struct | None:
        kind = self.endpoint.body
        if kind is None or self._decode is None:
            return None
        raw = b""
        if request.method == "POST":
            length = request.headers.get("content-length", "")
            coding = request.headers.get("content-encoding", "identity")
            if coding.lower() != "identity":
                says = f"The body is encoded as {coding[:100]}: send it as plain JSON."
                raise BadRequest(says, code="encoded_body", status=415)
            raw = await read(receive, self.service.config.max_body_bytes, length)
            raw = raw.removeprefix(BOM_UTF8)
        try:
            if "GET" in self.endpoint.methods and not raw:
                return msgspec.convert(dict(request.query_params), kind, strict=False)
            return self._decode(raw)
        except (ValueError, RecursionError) as error:
            raise invalid(error, kind) from None

    async def _answer(
        self, call: Call, body: Struct | None, scope: Scope, receive: Receive, send: Send
    ) -> None:
        reply = await self.endpoint.handler(call, body)
        if isinstance(reply, Response):
            await reply(scope, receive, send)
        elif isinstance(reply, Struct | Sequence):
            await Response(encode(reply), media_type="application/json")(scope, receive, send)
        else:
            async with aclosing(reply):
                await stream(reply, send)


def frame(value: Struct, event: str = "") -> bytes:
    """A value as a server-sent event. event: its name, where the API has names for them."""
    name = f"event: {event}\n".encode() if event else b""
    return b"%bdata: %b\n\n" % (name, encode(value))


async def stream(frames: AsyncGenerator[bytes, None], send: Send) -> None:
    """Send server-sent events. An error before the first one sets the response's status; a later
    one is sent as an event, and the stream ends without `[DONE]`."""
    started = False
    try:
        async for data in frames:
            if not started:
                started = True
                await send(START)
            await send({"type": "http.response.body", "body": data, "more_body": True})
    except Exception as error:
        if not started:
            raise
        status, answer, _ = problem(error)
        log.log(
            logging.ERROR if status == 500 else logging.WARNING,
            "a stream ended early: %s",
            error,
            exc_info=status == 500,
        )
        await send(
            {"type": "http.response.body", "body": frame(answer, "error"), "more_body": True}
        )
    await send({"type": "http.response.body", "body": b"", "more_body": False})


async def read(receive: Receive, limit: int, length: str) -> bytes:
    """The request's body; stops with a 413 as soon as it is larger than `limit` bytes."""
    too_large = BadRequest(
        f"The body is larger than the {limit} bytes this server takes.",
        code="body_too_large",
        status=413,
    )
    if length.isdecimal() and int(length[:20]) > limit:
        raise too_large
    parts, total = [], 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        part = message.get("body", b"")
        total += len(part)
        if total > limit:
            raise too_large
        parts.append(part)
        if not message.get("more_body", False):
            return parts[0] if len(parts) == 1 else b"".join(parts)


async def unless_gone(receive: Receive, work: Coroutine[Any, Any, None]) -> None:
    """Run `work`, but cancel it and raise `ClientGone` once the client has hung up."""

    async def hangs_up() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    answering, gone = asyncio.create_task(work), asyncio.create_task(hangs_up())
    try:
        await asyncio.wait((answering, gone), return_when=asyncio.FIRST_COMPLETED)
        if not answering.done():
            raise ClientGone
        answering.result()
    finally:
        gone.cancel()
        if not answering.done():
            answering.cancel()
            with suppress(asyncio.CancelledError):
                await answering
