"""Any service that speaks OpenAI's completions or chat completions."""

from __future__ import annotations

import base64
import os
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path
from typing import Any

from weir.errors import BadRequest, ConfigError
from weir.lang.backend.base import Piece, Prompt, Score, Turn
from weir.lang.backend.service import Service

STANDARD = {
    "max_tokens", "n", "stop", "temperature", "top_p", "frequency_penalty", "presence_penalty",
    "logit_bias", "seed", "logprobs",
}  # fmt: skip
"""Settings that OpenAI itself takes; the rest is for servers that take more."""


def OpenAI(
    model_name: str,
    base_url: str = "https://api.openai.com/v1",
    api_key: str | None = None,
    is_chat_model: bool = True,
) -> Chat | Completions:
    """A model behind an OpenAI-compatible service. `api_key`: by default OPENAI_API_KEY."""
    key = api_key or os.environ.get("OPENAI_API_KEY", "")
    if not key and "api.openai.com" in base_url:
        raise ConfigError("OpenAI needs a key: set OPENAI_API_KEY, or give api_key")
    service = Service(base_url, {"Authorization": f"Bearer {key}"} if key else None)
    return (Chat if is_chat_model else Completions)(service, model_name)


class Completions:
    """Goes on with a text. Turns are written plainly, as "USER: ...", for lack of a template."""

    chats = False

    def __init__(self, service: Service, model: str):
        self.service = service
        self.model = model

    def shutdown(self) -> None:
        """Close the connections to the service."""
        self.service.close()

    def turn(self, roles: Sequence[str]) -> Turn:
        return Turn(f"{roles[-1].upper()}: ", "\n")

    async def generate(
        self, prompt: Prompt, settings: dict[str, Any]
    ) -> AsyncGenerator[Piece, None]:
        _no_images(prompt)
        body = self._body(settings) | {"prompt": prompt.text, **_streamed()}
        async for event in self.service.events("/completions", body):
            for piece in self._pieces(event):
                yield piece

    def _body(self, settings: dict[str, Any]) -> dict[str, Any]:
        return {"model": self.model} | structured(settings)

    def _pieces(self, event: dict[str, Any]) -> list[Piece]:
        usage = _used(self.service, event)
        found = [
            Piece(choice.get("text") or "", choice["index"], choice.get("finish_reason"), **usage)
            for choice in event["choices"]
        ]
        return found or ([Piece("", **usage)] if usage else [])

    async def score(self, prompt: Prompt, choices: Sequence[str]) -> list[Score]:
        """One call that echoes the prompt's logprobs; a token that began in the prompt and ends in
        the choice counts for the choice."""
        body = {
            "model": self.model,
            "prompt": [prompt.text + choice for choice in choices],
            "max_tokens": 0,
            "echo": True,
            "logprobs": 1,
        }
        answer = await self.service.post("/completions", body)
        self.service.count(answer.get("usage") or {})
        found = []
        for choice in sorted(answer["choices"], key=lambda choice: choice["index"]):
            echoed = choice["logprobs"]
            ends = [*echoed["text_offset"][1:], len(choice["text"])]
            first = next(i for i, end in enumerate(ends) if end > len(prompt.text))
            first = max(first, 1) if len(ends) > 1 else first  # the very first has no logprob
            logprobs = [value or 0.0 for value in echoed["token_logprobs"][first:]]
            found.append(Score([hash(token) for token in echoed["tokens"][first:]], logprobs))
        return found

    async def cache(self, prompt: Prompt) -> None:
        """A service of somebody else's takes no hints; a call would cost money."""

    async def flush(self) -> None:
        raise BadRequest("this service's cache cannot be flushed")


class Chat:
    """Answers a conversation. It cannot go on with a turn that has begun: a `gen` stands first in
    the assistant's turn, or the program speculates (`num_api_spec_tokens`)."""

    chats = True

    def __init__(self, service: Service, model: str):
        self.service = service
        self.model = model

    def shutdown(self) -> None:
        """Close the connections to the service."""
        self.service.close()

    def turn(self, roles: Sequence[str]) -> Turn:
        return Turn(f"{roles[-1].upper()}: ", "\n")

    async def generate(
        self, prompt: Prompt, settings: dict[str, Any]
    ) -> AsyncGenerator[Piece, None]:
        needs_whole_turn(prompt)
        messages = [_message(turn) for turn in prompt.turns]
        body = {"model": self.model} | structured(settings) | {"messages": messages, **_streamed()}
        if "logprobs" in body:
            body |= {"logprobs": True, "top_logprobs": body["logprobs"]}
        async for event in self.service.events("/chat/completions", body):
            usage = _used(self.service, event)
            for choice in event["choices"]:
                text = (choice.get("delta") or {}).get("content") or ""
                yield Piece(text, choice["index"], choice.get("finish_reason"), **usage)
            if usage and not event["choices"]:
                yield Piece("", **usage)

    async def score(self, prompt: Prompt, choices: Sequence[str]) -> list[Score]:
        raise BadRequest("select needs logprobs of the prompt, which a chat service does not give")

    async def cache(self, prompt: Prompt) -> None:
        """See `Completions.cache`."""

    async def flush(self) -> None:
        raise BadRequest("this service's cache cannot be flushed")


def needs_whole_turn(prompt: Prompt) -> None:
    """Raises BadRequest unless the assistant's turn has just begun."""
    if prompt.role != "assistant":
        raise BadRequest("a chat service writes the assistant's turns only: use weir.assistant")
    if prompt.text[prompt.turn_start :]:
        raise BadRequest(
            "a chat service cannot go on with a turn that has begun: give the program "
            "num_api_spec_tokens, or let its gen stand first"
        )


def structured(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings as a request has them: shapes of the answer in the server's words."""
    body = dict(settings)
    regex, schema = body.pop("regex", None), body.pop("json_schema", None)
    if regex is not None:
        body["structured_outputs"] = {"regex": regex}
    if schema is not None:
        shape = {"name": "answer", "schema": schema, "strict": True}
        body["response_format"] = {"type": "json_schema", "json_schema": shape}
    return body


def _streamed() -> dict[str, Any]:
    return {"stream": True, "stream_options": {"include_usage": True}}


def _used(service: Service, event: dict[str, Any]) -> dict[str, Any]:
    """The token counts of an event that has them, added to the service's."""
    usage = event.get("usage")
    if not usage:
        return {}
    service.count(usage)
    details = usage.get("prompt_tokens_details") or {}
    return {
        "prompt_tokens": usage["prompt_tokens"],
        "completion_tokens": usage.get("completion_tokens", 0),
        "cached_tokens": details.get("cached_tokens") or 0,
    }


def _message(turn: dict[str, Any]) -> dict[str, Any]:
    if not turn["images"]:
        return {"role": turn["role"], "content": turn["content"]}
    parts: list[dict[str, Any]] = [{"type": "text", "text": turn["content"]}]
    for image in turn["images"]:
        parts.append({"type": "image_url", "image_url": {"url": image_url(image)}})
    return {"role": turn["role"], "content": parts}


def image_url(image: str | bytes) -> str:
    """A URL as it is; a file or bytes as a data URL."""
    if isinstance(image, str) and image.startswith(("http://", "https://", "data:")):
        return image
    content = image if isinstance(image, bytes) else Path(image).read_bytes()
    kind = "png" if content.startswith(b"\x89PNG") else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _no_images(prompt: Prompt) -> None:
    if prompt.images or any(turn["images"] for turn in prompt.turns):
        raise BadRequest("this backend reads text only, no images")
