"""Several running servers behind one address, with failover.

An ASGI application. Requests and answers pass through it byte for byte, keys included, so it serves
any API over HTTP; of a body it only reads the prompt. Knows no engine.
"""

import asyncio
import logging
import math
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import count
from socket import socket

import msgspec
from msgspec import Raw
from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from weir import balance
from weir.errors import EngineDead, Overloaded, WeirError
from weir.http import Headers, Http, HttpError
from weir.http import Response as Answer
from weir.server.edge import explain
from weir.server.endpoint import ClientGone, frame, read, unless_gone
from weir.server.main import Server, settings
from weir.server.problems import problem

log = logging.getLogger(__name__)

EVERY, LOOK = 1.0, 10.0  # seconds between two checks of a replica, and most that one may take
KEPT = 64  # idle connections to a replica
BLOCK = 64  # bytes of a prompt, about 16 tokens: the policy's unit of cached prefixes
UNKNOWN = "not asked yet"
TO_ALL = {
    *("/flush_cache", "/reset_prefix_cache", "/abort_request", "/abort_requests"),
    *("/pin_prefix", "/unpin_prefix"),
}
"""Requests to these paths go to all replicas."""
OWN = {"/health", "/ping", "/ready", "/readyz", "/livez", "/metrics"}
"""Paths that the router answers itself."""
HOP = {b"connection", b"keep-alive", b"transfer-encoding", b"te", b"upgrade"}
OURS, THEIRS = HOP | {b"host", b"content-length", b"expect"}, HOP | {b"date"}
"""Headers of requests and of answers that are not passed on: they belong to one connection."""

SAID = ("system", "instructions", "tools", "messages", "input", "prompt", "text", "input_ids")
"""The fields of all APIs that make up the prompt, roughly in the order of templates."""
_fields = msgspec.json.Decoder(dict[str, Raw]).decode


def prompt(body: bytes) -> bytes:
    """The raw JSON of a body's prompt, to compare prefixes; empty if the body is invalid."""
    try:
        fields = _fields(body)
    except (ValueError, RecursionError):
        return b""
    return b"".join(fields[name] for name in SAID if name in fields)


@dataclass(slots=True, eq=False)
class Replica:
    http: Http
    number: int = -1  # changes each time the replica comes back
    load: int = 0  # requests in progress
    trouble: str = UNKNOWN  # why it gets no requests; empty if it does

    @asynccontextmanager
    async def ask(
        self, method: str, path: str, body: bytes, headers: Headers
    ) -> AsyncIterator[Answer]:
        self.load += 1
        try:
            async with self.http.send(method, path, body, headers) as answer:
                yield answer
        finally:
            self.load -= 1


class Router:
    """urls: of the servers. limit: bytes of a body. timeout: seconds that a replica may be silent.

    Before any part of an answer has come, a request is passed to another replica if one cannot be
    reached, closes the connection, or answers 503 because it is full, starting or draining.
    """

    def __init__(
        self,
        urls: Sequence[str],
        policy: balance.Router,
        limit: int = 2**25,
        timeout: float = 600.0,
    ):
        kept = dict.fromkeys(url.rstrip("/") for url in urls)
        self.replicas = [Replica(Http(url, {}, timeout, KEPT)) for url in kept]
        self._policy = policy
        self._limit = limit
        self._numbers = count()
        self._registry = registry = CollectorRegistry()
        of = ["replica"]
        self._answers = Counter(
            "weir_router_answers", "Answers", [*of, "status"], registry=registry
        )
        self._moved = Counter(
            "weir_router_moved", "Requests it did not take", of, registry=registry
        )
        ready = Gauge("weir_router_ready", "Whether it gets requests", of, registry=registry)
        load = Gauge("weir_router_requests", "Requests it has in hand", of, registry=registry)
        for one in self.replicas:
            ready.labels(one.http.base).set_function(lambda one=one: not one.trouble)  # type: ignore[misc]
            load.labels(one.http.base).set_function(lambda one=one: one.load)  # type: ignore[misc]

    # -- who is there --------------------------------------------------------------------------

    async def watch(self) -> None:
        """Check all replicas regularly, until cancelled; then close what is open to them."""
        try:
            await asyncio.gather(*map(self._watch, self.replicas))
        finally:
            for one in self.replicas:
                one.http.close()

    async def _watch(self, replica: Replica) -> None:
        while True:
            self._found(replica, await trouble(replica.http))
            await asyncio.sleep(EVERY)

    def _found(self, replica: Replica, trouble: str) -> None:
        if trouble and replica.trouble in ("", UNKNOWN):
            log.warning("%s gets no requests: %s", replica.http.base, trouble)
        elif replica.trouble and not trouble:
            log.info("%s gets requests", replica.http.base)
            replica.number = next(self._numbers)
        replica.trouble = trouble

    def _choose(self, said: bytes, tried: Sequence[Replica]) -> Replica | None:
        """The policy's choice or, after that one failed, the replica with the least load."""
        ready = {one.number: one for one in self.replicas if not one.trouble}
        if not tried and ready:
            return ready[self._policy.route(said, {i: one.load for i, one in ready.items()})]
        left = [one for one in ready.values() if one not in tried]
        return min(left, key=lambda one: one.load, default=None)

    # -- requests ------------------------------------------------------------------------------

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request, path = Request(scope), scope["path"]
        try:
            if path in OWN:
                await self.answer(path)(scope, receive, send)
                return
            body = await read(receive, self._limit, request.headers.get("content-length", ""))
            serve = self._tell_all if path in TO_ALL else self._forward
            await unless_gone(receive, serve(request, body, send))
        except ClientGone:
            pass
        except WeirError as error:
            await (await explain(request, error))(scope, receive, send)

    def answer(self, path: str) -> Response:
        """The router's own answer to a path in `OWN`."""
        if path == "/metrics":
            return Response(generate_latest(self._registry), media_type="text/plain; version=0.0.4")
        if path != "/livez" and all(one.trouble for one in self.replicas):
            raise self._nobody()
        return Response()

    def _nobody(self) -> Overloaded:
        known = "; ".join(f"{one.http.base}: {one.trouble or 'full'}" for one in self.replicas)
        return Overloaded(f"No server takes this request. {known}", retry_after=EVERY)

    async def _forward(self, request: Request, body: bytes, send: Send) -> None:
        said, call = prompt(body), passed_on(request, body)
        tried: list[Replica] = []
        broken = 0
        while (replica := self._choose(said, tried)) is not None:
            tried.append(replica)
            name = replica.http.base
            try:
                async with replica.ask(*call) as answer:
                    if answer.status != 503 or self._choose(said, tried) is None:
                        self._answers.labels(name, str(answer.status)).inc()
                        return await relay(answer, send)
                    why = "it answered 503"
            except HttpError as error:
                why = str(error)
                broken += error.status > 0
                if error.status == 504 or broken > 1:  # the request may be the cause
                    raise EngineDead(f"{name}: {why}") from None
                self._found(replica, why)
            self._moved.labels(name).inc()
            log.info("%s is asked of another server: %s", request.url.path, why)
        raise self._nobody()

    async def _tell_all(self, request: Request, body: bytes, send: Send) -> None:
        """Ask all replicas; answers with their answers by address and the highest status."""
        call = passed_on(request, body)

        async def tell(replica: Replica) -> tuple[int, object]:
            try:
                async with replica.ask(*call) as answer:
                    content = await answer.body()
            except HttpError as error:
                return 502, str(error)
            try:
                return answer.status, msgspec.json.decode(content)
            except ValueError:
                return answer.status, content.decode(errors="replace")

        ready = [one for one in self.replicas if not one.trouble]
        if not ready:
            raise self._nobody()
        told = await asyncio.gather(*map(tell, ready))
        said = {one.http.base: answer for one, (_, answer) in zip(ready, told, strict=True)}
        status = max(status for status, _ in told)
        response = Response(msgspec.json.encode(said), status, media_type="application/json")
        await response(request.scope, request.receive, send)


Call = tuple[str, str, bytes, Headers]


def passed_on(request: Request, body: bytes) -> Call:
    """A request as replicas get it: method, path, body and headers."""
    scope = request.scope
    # HEAD becomes GET: the end of an answer to HEAD cannot be told from its headers
    method = "GET" if scope["method"] == "HEAD" else scope["method"]
    query = scope["query_string"].decode("latin-1")
    path = scope["raw_path"].decode("latin-1") + (f"?{query}" if query else "")
    headers = [(name, value) for name, value in scope["headers"] if name not in OURS]
    return method, path, body, headers


async def relay(answer: Answer, send: Send) -> None:
    """Pass on an answer as it arrives. If it breaks off, an event stream ends with an error; any
    other is left incomplete, so that the client's connection breaks off, too."""
    headers = [(name, value) for name, value in answer.headers if name not in THEIRS]
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    end = b""
    try:
        async for part in answer.parts():
            await send({"type": "http.response.body", "body": part, "more_body": True})
    except HttpError as error:
        log.warning("an answer broke off: %s", error)
        if not dict(headers).get(b"content-type", b"").startswith(b"text/event-stream"):
            return
        end = frame(problem(EngineDead(str(error))).body, "error")
    await send({"type": "http.response.body", "body": end})


async def trouble(http: Http) -> str:
    """Why a server takes no requests; empty if it does. Servers other than Weir have no /ready."""
    try:
        async with asyncio.timeout(LOOK):
            try:
                await http.get("/ready")
            except HttpError as error:
                if error.status != 404:
                    raise
                await http.get("/health")
    except (HttpError, ValueError) as error:  # ValueError: of an invalid host name
        return str(error)
    except TimeoutError:
        return f"it said nothing for {LOOK:g} s"
    return ""


async def serve(router: Router, listening: socket, patience: float) -> None:
    """Route until a signal; requests in progress then get `patience` seconds to finish."""
    server = Server(settings(router, timeout_graceful_shutdown=math.ceil(patience)))
    watching = asyncio.create_task(router.watch())
    try:
        await server.serve(sockets=[listening])
    finally:
        watching.cancel()
