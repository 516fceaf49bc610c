"""A service over HTTP: JSON in, JSON or server-sent events out, errors as sentences."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import httpx
import msgspec

from weir.errors import BadRequest, EngineDead, Overloaded
from weir.lang.loop import spawn, wait

ATTEMPTS = 5
"""Times a request is sent that the service was too busy for."""


class Service:
    """url: what paths follow. It counts its calls and their tokens, as the service reports them."""

    def __init__(self, url: str, headers: dict[str, str] | None = None, timeout: float = 600.0):
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=64)
        self._http = httpx.AsyncClient(
            base_url=url.rstrip("/"), headers=headers, timeout=timeout, limits=limits
        )
        self.calls = 0
        self.prompt_tokens = 0
        self.completion_tokens = 0

    def count(self, usage: dict[str, Any]) -> None:
        """Add what one call used; `usage` in OpenAI's or Anthropic's words."""
        self.prompt_tokens += usage.get("prompt_tokens", usage.get("input_tokens", 0))
        self.completion_tokens += usage.get("completion_tokens", usage.get("output_tokens", 0))

    def close(self) -> None:
        """Hang up."""
        wait(spawn(self._http.aclose()))

    async def get(self, path: str) -> Any:
        async for data in self.events(path, None, "GET"):
            return data

    async def post(self, path: str, body: Any) -> Any:
        """The answer to one call. Raises BadRequest, Overloaded, EngineDead."""
        async for data in self.events(path, body):
            return data

    async def events(self, path: str, body: Any, method: str = "POST") -> AsyncGenerator[Any, None]:
        """Each event's data; the whole answer where it is not a stream. Closing it hangs up."""
        self.calls += 1
        for attempt in range(ATTEMPTS):
            try:
                async with self._http.stream(method, path, json=body) as response:
                    if response.status_code not in (429, 503) or attempt == ATTEMPTS - 1:
                        async for data in self._read(response):
                            yield data
                        return
                    told = response.headers.get("retry-after", "")
                    seconds = float(told) if told.isdecimal() else 2.0**attempt
            except httpx.HTTPError as error:
                raise EngineDead(f"{self._http.base_url}: {type(error).__name__} {error}") from None
            await asyncio.sleep(min(seconds, 30.0))

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
        content = await response.aread()
        try:
            found = msgspec.json.decode(content)
        except msgspec.DecodeError:
            found = content.decode("utf-8", "replace")[:500]
        if response.is_success:
            return found
        says = f"{response.url} answered {response.status_code}: {_message(found)}"
        if response.status_code in (429, 503):
            raise Overloaded(says)
        raise EngineDead(says) if response.status_code >= 500 else BadRequest(says)


def _message(found: Any) -> str:
    """What an error says, in the shapes that services give it."""
    error = found.get("error", found) if isinstance(found, dict) else found
    return str(error.get("message", error)) if isinstance(error, dict) else str(error)
