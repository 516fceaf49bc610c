"""A service over HTTP that takes JSON and answers with JSON or server-sent events."""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator
from itertools import count
from typing import Any

import httpx
import msgspec

from weir.errors import BadRequest, EngineDead, Overloaded
from weir.lang.loop import spawn, wait

log = logging.getLogger(__name__)

ATTEMPTS = 5
"""Times a request is sent to a busy service that does not say when to retry."""

QUIET = 60.0
"""Seconds between warnings in the log that a service asks to retry later."""


class Service:
    """Counts calls, and their tokens as the service reports them. url: the prefix of all paths.

    timeout: seconds that the service may be silent, and that it may defer one request in all
    (`Retry-After`), as a server does that is starting or full."""

    def __init__(self, url: str, headers: dict[str, str] | None = None, timeout: float = 600.0):
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=64)
        self._http = httpx.AsyncClient(
            base_url=url.rstrip("/"), headers=headers, timeout=timeout, limits=limits
        )
        self._patience = timeout
        self._said = -QUIET  # time of the last warning
        self.calls = 0
        self.prompt_tokens = 0
        self.completion_tokens = 0

    def count(self, usage: dict[str, Any]) -> None:
        """Add the tokens of one call; `usage` is in OpenAI's or Anthropic's format."""
        self.prompt_tokens += usage.get("prompt_tokens", usage.get("input_tokens", 0))
        self.completion_tokens += usage.get("completion_tokens", usage.get("output_tokens", 0))

    def close(self) -> None:
        """Close all connections."""
        wait(spawn(self._http.aclose()))

    async def get(self, path: str) -> Any:
        async for data in self.events(path, None, "GET"):
            return data

    async def post(self, path: str, body: Any) -> Any:
        """The answer to one call. Raises BadRequest, Overloaded, EngineDead."""
        async for data in self.events(path, body):
            return data

    async def events(self, path: str, body: Any, method: str = "POST") -> AsyncGenerator[Any, None]:
        """Yields each event's data, or the whole answer if it is not a stream. Closing the
        generator closes the connection. Raises as `post`."""
        self.calls += 1
        began = time.monotonic()
        for attempt in count(1):
            try:
                async with self._http.stream(method, path, json=body) as response:
                    pause = self._pause(response, attempt, time.monotonic() - began)
                    if pause is None:
                        async for data in self._read(response):
                            yield data
                        return
                    await self._say_wait(response)
            except httpx.HTTPError as error:
                raise EngineDead(f"{self._http.base_url}: {type(error).__name__} {error}") from None
            await asyncio.sleep(pause)

    def _pause(self, response: httpx.Response, attempt: int, waited: float) -> float | None:
        """Seconds until a deferred request is sent again; None: this response is final."""
        final = response.headers.get("x-should-retry") == "false"
        if final or response.status_code not in (429, 503):
            return None
        told = response.headers.get("retry-after", "")
        if not told.isdecimal():
            return None if attempt >= ATTEMPTS else 2.0 ** (attempt - 1)
        pause = min(max(float(told), 0.1), 30.0)
        return pause if waited + pause < self._patience else None

    async def _say_wait(self, response: httpx.Response) -> None:
        """Log one warning, however many requests wait."""
        now = time.monotonic()
        if now - self._said >= QUIET:
            self._said = now
            says = _message(await _content(response))
            log.warning("%s: %s Waiting up to %g s.", response.url, says, self._patience)

    async def _read(self, response: httpx.Response) -> AsyncGenerator[Any, None]:
        streams = "text/event-stream" in response.headers.get("content-type", "")
        if not (streams and response.is_success):
            yield await self._whole(response)
            return
        async for line in response.aiter_lines():
            data = line.removeprefix("data:").strip()
            if line.startswith("data:") and data != "[DONE]":
                found = msgspec.json.decode(data)
                if isinstance(found, dict) and found.get("error"):
                    raise EngineDead(f"{response.url}: {_message(found)}")
                yield found

    async def _whole(self, response: httpx.Response) -> Any:
        found = await _content(response)
        if response.is_success:
            return found
        says = f"{response.url} answered {response.status_code}: {_message(found)}"
        if response.status_code in (429, 503):
            raise Overloaded(says)
        raise EngineDead(says) if response.status_code >= 500 else BadRequest(says)


async def _content(response: httpx.Response) -> Any:
    """A response's content: decoded JSON, else the beginning of its text."""
    content = await response.aread()
    try:
        return msgspec.json.decode(content)
    except msgspec.DecodeError:
        return content.decode("utf-8", "replace")[:500]


def _message(found: Any) -> str:
    """The message of an error, in any of the formats that services use."""
    error = found.get("error", found) if isinstance(found, dict) else found
    return str(error.get("message", error)) if isinstance(error, dict) else str(error)
