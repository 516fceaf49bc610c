"""A small HTTP/1.1 client, cheap enough to run beside a server on the same cores.

By default each request has its own connection, like those of unrelated users. A streamed answer is
an iterator of the payloads of server-sent events, with their arrival times. Knows no API, only
HTTP.
"""

import asyncio
import ssl
import time
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar
from urllib.parse import urlsplit

import msgspec
import uvloop
from httptools import HttpParserError, HttpResponseParser

from weir.errors import WeirError

READ = 2**16
Headers = Iterable[tuple[bytes, bytes]]
T = TypeVar("T")


class HttpError(WeirError):
    """The server could not be reached, or answered with an error. status: the answer's, or 0: not
    reached; 502: the answer was invalid or broke off; 504: the server was silent for too long."""

    def __init__(self, message: str, status: int = 0):
        super().__init__(message)
        self.status = status


class Event(NamedTuple):
    arrival: float  # time.perf_counter()
    data: bytes


@dataclass(slots=True)
class Response:
    """An answer as it arrives. The parser calls the methods `on_…`."""

    reader: asyncio.StreamReader
    timeout: float
    base: str = "the server"
    status: int = 0  # 0 until the headers have arrived
    framed: bool = False  # headers say where the body ends; else it ends with the connection
    done: bool = False
    reusable: bool = False  # the connection may carry another answer
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)  # names in lower case
    held: list[bytes] = field(default_factory=list)  # parts of the body not read yet
    parser: HttpResponseParser = field(init=False)

    def __post_init__(self) -> None:
        self.parser = HttpResponseParser(self)

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value))
        self.framed |= name.lower() in (b"content-length", b"transfer-encoding")

    def on_headers_complete(self) -> None:
        self.status = self.parser.get_status_code()

    def on_body(self, data: bytes) -> None:
        self.held.append(data)

    def on_message_complete(self) -> None:
        self.done, self.reusable = True, self.parser.should_keep_alive()

    async def receive(self) -> None:
        """Receive more bytes. Raises `HttpError` if the answer is silent, invalid or broken off."""
        try:
            async with asyncio.timeout(self.timeout):
                data = await self.reader.read(READ)
            if data:
                self.parser.feed_data(data)
        except TimeoutError:
            raise HttpError(f"{self.base} was silent for {self.timeout:g} s", 504) from None
        except (OSError, HttpParserError) as error:
            raise HttpError(f"{self.base}: broken answer: {error}", 502) from None
        if data:
            return
        if self.framed or not self.status:
            raise HttpError(f"{self.base} closed the connection in the middle of an answer", 502)
        self.done = True

    async def parts(self) -> AsyncIterator[bytes]:
        """The body as it arrives."""
        while self.held or not self.done:
            if self.held:
                part, self.held = b"".join(self.held), []
                yield part
            else:
                await self.receive()

    async def body(self) -> bytes:
        return b"".join([part async for part in self.parts()])

    async def events(self) -> AsyncIterator[Event]:
        """The `data:` lines of a stream of server-sent events."""
        buffer = bytearray()
        async for part in self.parts():
            arrival = time.perf_counter()
            buffer += part
            *lines, rest = buffer.split(b"\n")
            buffer = rest
            for line in lines:
                if line.startswith(b"data:"):
                    yield Event(arrival, bytes(line[5:].strip()))


def bearer(key: str | None) -> dict[str, str]:
    """The header with a server's API key, if there is one."""
    return {"Authorization": f"Bearer {key}"} if key else {}


class Address(NamedTuple):
    host: str
    port: int
    path: str  # without a slash at its end
    name: str  # host and port as they were written
    secure: bool


def address(base: str) -> Address:
    """Where a server is. Raises `HttpError`."""
    try:
        url = urlsplit(base)
        port = url.port or (443 if url.scheme == "https" else 80)
    except ValueError:
        url, port = urlsplit(""), 0
    if url.scheme not in ("http", "https") or not url.hostname:
        raise HttpError(f"{base!r} is no address: give one like http://127.0.0.1:8000")
    return Address(url.hostname, port, url.path.rstrip("/"), url.netloc, url.scheme == "https")


@dataclass(slots=True)
class Http:
    """A server at `base`, such as http://127.0.0.1:8000. timeout: seconds that it may be silent.
    keep: connections kept open for later requests, at most; then it belongs to one event loop."""

    base: str
    headers: Mapping[str, str] = field(default_factory=dict)
    timeout: float = 600.0
    keep: int = 0
    idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = field(default_factory=list)

    @asynccontextmanager
    async def send(
        self, method: str, path: str, body: Any = None, headers: Headers = ()
    ) -> AsyncIterator[Response]:
        """Send a request. body: bytes are sent unchanged, anything else as JSON. headers: sent
        after our own. A connection that is not kept is closed at the end of the block. Raises
        `HttpError`."""
        server = address(self.base)
        request = self._request(method, server.path + path, server.name, body, headers)
        response, writer = await self._ask(request, server)
        try:
            yield response
        finally:
            unsent = writer.transport.get_write_buffer_size()  # it answered before it had read all
            if response.reusable and not unsent and len(self.idle) < self.keep:
                self.idle.append((response.reader, writer))
            else:
                writer.close()

    async def _ask(self, request: bytes, server: Address) -> tuple[Response, asyncio.StreamWriter]:
        """Send a request and receive the head of its answer. The server may close an idle
        connection at any time: then once more on a fresh one."""
        lost: HttpError | None = None
        while self.idle and lost is None:
            reader, writer = self.idle.pop()
            if reader.at_eof():
                writer.close()
                continue
            try:
                return await self._begin(request, reader, writer), writer
            except HttpError as error:
                if error.status == 504:
                    raise
                lost = error
        context = ssl.create_default_context() if server.secure else None
        try:
            async with asyncio.timeout(min(10.0, self.timeout)):
                reader, writer = await asyncio.open_connection(
                    server.host, server.port, ssl=context, limit=2 * READ
                )
        except (OSError, TimeoutError) as error:
            why = f"no server answers at {self.base}: {error or 'timed out'}"
            raise lost or HttpError(why) from None  # what it did to the request says more
        return await self._begin(request, reader, writer), writer

    async def _begin(
        self, request: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> Response:
        response = Response(reader, self.timeout, self.base)
        try:
            writer.write(request)
            while not response.status:
                await response.receive()
        except BaseException:
            writer.close()
            raise
        return response

    def close(self) -> None:
        """Close the connections that are kept."""
        while self.idle:
            self.idle.pop()[1].close()

    async def get(self, path: str) -> bytes:
        return await self.whole("GET", path)

    async def post(self, path: str, body: Any = None) -> bytes:
        return await self.whole("POST", path, body)

    async def whole(self, method: str, path: str, body: Any = None) -> bytes:
        """The body of an answer. Raises `HttpError` unless the status is 2xx."""
        async with self.send(method, path, body) as response:
            content = await response.body()
            check(response.status, content)
            return content

    async def stream(self, path: str, body: Any) -> AsyncGenerator[Event]:
        """Events of a POST's answer, up to `[DONE]`. Raises `HttpError` unless status is 2xx."""
        async with self.send("POST", path, body) as response:
            if response.status // 100 != 2:
                check(response.status, await response.body())
            async for event in response.events():
                if event.data == b"[DONE]":
                    return
                yield event

    def _request(self, method: str, path: str, host: str, body: Any, more: Headers) -> bytes:
        raw = body is None or isinstance(body, bytes)
        content: bytes = (body or b"") if raw else msgspec.json.encode(body)
        own = {"Host": host, "Connection": "keep-alive" if self.keep else "close", **self.headers}
        if not raw:
            own["Content-Type"] = "application/json"
        if content or method != "GET":
            own["Content-Length"] = str(len(content))
        head = [(name.encode(), value.encode()) for name, value in own.items()]
        lines = [b"%b: %b" % pair for pair in (*head, *more)]
        first = f"{method} {path} HTTP/1.1".encode("latin-1")
        return b"\r\n".join([first, *lines, b"", content])


def run(main: Coroutine[Any, Any, T]) -> T:
    """`asyncio.run` on uvloop."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(main)


def check(status: int, content: bytes) -> None:
    """Raise `HttpError` with the server's message unless the status is 2xx."""
    if status // 100 != 2:
        raise HttpError(f"HTTP {status}: {message(content)}", status)


def message(content: bytes) -> str:
    """The message of an error body, in OpenAI's format or any other."""
    try:
        body = msgspec.json.decode(content)
        error = body.get("error", body)
        return str(error["message"] if isinstance(error, dict) else error)
    except (msgspec.DecodeError, UnicodeDecodeError, AttributeError, KeyError):
        return content[:300].decode(errors="replace").strip() or "no reason given"
