"""A small HTTP/1.1 client that costs little beside a server on the same cores.

One connection a request, as of unrelated users. A streamed answer is an iterator of the payloads of
server-sent events, each with the moment its bytes arrived. Knows no API, only HTTP.
"""

import asyncio
import ssl
import time
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar
from urllib.parse import urlsplit

import msgspec
import uvloop

from weir.errors import WeirError

READ = 2**16
T = TypeVar("T")


class HttpError(WeirError):
    """The server could not be reached, or answered with an error. `status` 0: no answer."""

    def __init__(self, message: str, status: int = 0):
        super().__init__(message)
        self.status = status


class Event(NamedTuple):
    arrival: float  # time.perf_counter()
    data: bytes


class Chunks:
    """Takes chunked transfer coding off a stream, however it was cut into reads."""

    def __init__(self) -> None:
        self.buffer = bytearray()
        self.left = 0  # bytes of the chunk at hand, its CRLF included; 0: a size line comes next
        self.done = False

    def feed(self, data: bytes) -> bytes:
        self.buffer += data
        out = bytearray()
        while self.buffer and not self.done:
            if self.left == 0:
                end = self.buffer.find(b"\r\n")
                if end < 0:
                    break
                size = int(self.buffer[:end].split(b";")[0], 16)
                del self.buffer[: end + 2]
                self.done = size == 0
                self.left = size + 2
            else:
                taken = min(self.left, len(self.buffer))
                content = max(0, min(taken, self.left - 2))  # what is not the chunk's CRLF
                out += self.buffer[:content]
                del self.buffer[:taken]
                self.left -= taken
        return bytes(out)


@dataclass(slots=True)
class Response:
    status: int
    headers: dict[str, str]
    reader: asyncio.StreamReader
    timeout: float

    async def parts(self) -> AsyncIterator[bytes]:
        """The body as it arrives."""
        chunks = Chunks() if self.headers.get("transfer-encoding") == "chunked" else None
        left = int(self.headers.get("content-length", "-1"))
        while left != 0 and not (chunks and chunks.done):
            async with asyncio.timeout(self.timeout):
                data = await self.reader.read(READ)
            if not data:
                if chunks or left > 0:
                    raise HttpError("the server closed the connection in the middle of an answer")
                return
            left -= len(data) if left > 0 else 0
            yield chunks.feed(data) if chunks else data

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
    """The header of a request to a server that asks for a key."""
    return {"Authorization": f"Bearer {key}"} if key else {}


@dataclass(slots=True)
class Http:
    """A server at `base`, such as http://127.0.0.1:8000. `timeout`: seconds of silence allowed."""

    base: str
    headers: Mapping[str, str] = field(default_factory=dict)
    timeout: float = 600.0

    @asynccontextmanager
    async def send(self, method: str, path: str, body: Any = None) -> AsyncIterator[Response]:
        """Send a request, JSON if there is a body; the connection lives as long as the block."""
        try:
            url = urlsplit(self.base)
            port = url.port or (443 if url.scheme == "https" else 80)
        except ValueError:
            url, port = urlsplit(""), 0
        if url.scheme not in ("http", "https") or not url.hostname:
            raise HttpError(f"{self.base!r} is no address: give one like http://127.0.0.1:8000")
        context = ssl.create_default_context() if url.scheme == "https" else None
        try:
            async with asyncio.timeout(min(10.0, self.timeout)):
                reader, writer = await asyncio.open_connection(
                    url.hostname, port, ssl=context, limit=2 * READ
                )
        except (OSError, TimeoutError) as error:
            raise HttpError(f"no server answers at {self.base}: {error or 'timed out'}") from None
        try:
            writer.write(self._request(method, url.path.rstrip("/") + path, url.netloc, body))
            yield await self._response(reader)
        except TimeoutError:
            raise HttpError(f"{self.base} was silent for {self.timeout:g} s") from None
        except (OSError, asyncio.IncompleteReadError, ValueError) as error:
            raise HttpError(f"{self.base}{path}: broken answer: {error}") from None
        finally:
            writer.close()

    async def get(self, path: str) -> bytes:
        return await self.whole("GET", path)

    async def post(self, path: str, body: Any = None) -> bytes:
        return await self.whole("POST", path, body)

    async def whole(self, method: str, path: str, body: Any = None) -> bytes:
        """The whole answer. Raises `HttpError` for any status but 2xx."""
        async with self.send(method, path, body) as response:
            content = await response.body()
            check(response.status, content)
            return content

    async def stream(self, path: str, body: Any) -> AsyncGenerator[Event]:
        """Events of a POST up to `[DONE]`. Raises `HttpError` for any status but 2xx."""
        async with self.send("POST", path, body) as response:
            if response.status // 100 != 2:
                check(response.status, await response.body())
            async for event in response.events():
                if event.data == b"[DONE]":
                    return
                yield event

    def _request(self, method: str, path: str, host: str, body: Any) -> bytes:
        content = b"" if body is None else msgspec.json.encode(body)
        headers = {"Host": host, "Connection": "close", **self.headers}
        if body is not None:
            headers |= {"Content-Type": "application/json"}
        if method != "GET":
            headers |= {"Content-Length": str(len(content))}
        head = [f"{method} {path} HTTP/1.1", *(f"{key}: {value}" for key, value in headers.items())]
        return "\r\n".join([*head, "", ""]).encode() + content

    async def _response(self, reader: asyncio.StreamReader) -> Response:
        async with asyncio.timeout(self.timeout):
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        first, *lines = head.split("\r\n")[:-2]
        version, _, status = first.partition(" ")
        if not version.startswith("HTTP/1."):
            raise ValueError(f"this is not HTTP/1.1: {first[:80]!r}")
        pairs = (line.partition(":") for line in lines)
        headers = {key.strip().lower(): value.strip() for key, _, value in pairs}
        return Response(int(status[:3]), headers, reader, self.timeout)


def run(main: Coroutine[Any, Any, T]) -> T:
    """`asyncio.run` on uvloop."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(main)


def check(status: int, content: bytes) -> None:
    """Raise `HttpError` with the server's own words unless the status is 2xx."""
    if status // 100 != 2:
        raise HttpError(f"HTTP {status}: {message(content)}", status)


def message(content: bytes) -> str:
    """What an error body says, in OpenAI's shape or any other."""
    try:
        body = msgspec.json.decode(content)
        error = body.get("error", body)
        return str(error["message"] if isinstance(error, dict) else error)
    except (msgspec.DecodeError, UnicodeDecodeError, AttributeError, KeyError):
        return content[:300].decode(errors="replace").strip() or "no reason given"
