"""An OpenAI-compatible server that says what it is told to, at the pace it is told to.

The prompt scripts the answer: a text prompt that begins with `{` is JSON of a `Script`; any other
prompt gets the default one. Prompts are counted one token a word.
"""

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route


@dataclass
class Script:
    tokens: int = 0  # 0: as many as asked for
    first: float = 0.0  # seconds to the first token
    gap: float = 0.0  # seconds to each later one
    status: int = 200
    fail_after: int = -1  # an error event after so many tokens
    drop_after: int = -1  # the connection is lost after so many tokens
    empty: bool = False  # tokens without text, as half characters are
    pack: bool = False  # all events in one write


@dataclass
class Fake:
    """What the server saw."""

    url: str = ""
    bodies: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    metrics: str = ""
    running: int = 0
    most_running: int = 0


def words(prompt: Any) -> int:
    return len(prompt) if isinstance(prompt, list) else len(str(prompt).split())


def app(fake: Fake) -> Starlette:
    def script(prompt: Any) -> Script:
        scripted = isinstance(prompt, str) and prompt.startswith("{")
        return Script(**json.loads(prompt)) if scripted else Script()

    async def tokens(script: Script, count: int) -> AsyncIterator[int]:
        fake.running += 1
        fake.most_running = max(fake.most_running, fake.running)
        try:
            for i in range(count):
                if i == script.drop_after:
                    raise ConnectionResetError
                await asyncio.sleep(script.gap if i else script.first)
                yield i
        finally:
            fake.running -= 1

    def refused(status: int) -> Response:
        body = {"error": {"message": "told to refuse", "type": "t", "param": None, "code": None}}
        return JSONResponse(body, status)

    async def completions(request: Request) -> Response:
        body = await request.json()
        fake.bodies.append(body)
        fake.headers.append(dict(request.headers))
        chat = "messages" in body
        prompt = body["messages"][-1]["content"] if chat else body["prompt"]
        told = script(prompt)
        if told.status != 200:
            return refused(told.status)
        count = told.tokens or body["max_tokens"]
        size = sum(words(m["content"]) for m in body["messages"]) if chat else words(prompt)

        def event(text: str, finish: str | None) -> bytes:
            choice: dict[str, Any] = {"index": 0, "finish_reason": finish}
            choice |= {"delta": {"content": text}} if chat else {"text": text}
            return b"data: " + json.dumps({"choices": [choice]}).encode() + b"\n\n"

        async def stream() -> AsyncIterator[bytes]:
            if chat:
                opening = {"index": 0, "delta": {"role": "assistant", "content": ""}}
                yield b"data: " + json.dumps({"choices": [opening]}).encode() + b"\n\n"
            packed = b""
            async for i in tokens(told, count):
                if i == told.fail_after:
                    yield b'data: {"error": {"message": "told to fail"}}\n\n'
                    return
                finish = "length" if i == count - 1 else None
                packed += event("" if told.empty else f"w{i} ", finish)
                if not told.pack:
                    yield packed
                    packed = b""
            usage = {"prompt_tokens": size, "completion_tokens": count}
            usage |= {"prompt_tokens_details": {"cached_tokens": size // 2}}
            last = {"choices": [], "usage": usage}
            yield packed + b"data: " + json.dumps(last).encode() + b"\n\ndata: [DONE]\n\n"

        return StreamingResponse(stream(), media_type="text/event-stream")

    async def generate(request: Request) -> Response:
        body = await request.json()
        fake.bodies.append(body)
        prompt = body.get("text") or body["input_ids"]
        count = body["sampling_params"]["max_new_tokens"]

        async def stream() -> AsyncIterator[bytes]:
            text = ""
            async for i in tokens(script(prompt), count):
                text += f"w{i} "
                meta = {"prompt_tokens": words(prompt), "completion_tokens": i + 1}
                data = {"text": text, "meta_info": meta | {"cached_tokens": 1}}
                yield b"data: " + json.dumps(data).encode() + b"\n\n"
            yield b"data: [DONE]\n\n"

        return StreamingResponse(stream(), media_type="text/event-stream")

    async def models(request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [{"id": "fake", "object": "model"}]})

    async def info(request: Request) -> Response:
        return JSONResponse({"device": "cpu", "dtype": "bfloat16"})

    async def metrics(request: Request) -> Response:
        return PlainTextResponse(fake.metrics)

    return Starlette(
        routes=[
            Route("/v1/completions", completions, methods=["POST"]),
            Route("/v1/chat/completions", completions, methods=["POST"]),
            Route("/generate", generate, methods=["POST"]),
            Route("/v1/models", models),
            Route("/server_info", info),
            Route("/metrics", metrics),
        ]
    )


@contextmanager
def fake_server() -> Iterator[Fake]:
    """Runs on a free loopback port, on a thread of this process."""
    fake = Fake()
    config = uvicorn.Config(app(fake), host="127.0.0.1", port=0, log_level="critical")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        thread.join(0.01)
        assert thread.is_alive()
    fake.url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    try:
        yield fake
    finally:
        server.should_exit = True
        thread.join(10)
