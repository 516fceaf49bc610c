"""A service with OpenAI's completions or chat completions API."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Sequence
from typing import Any

from weir.client.events import Logprob
from weir.errors import BadRequest, ConfigError
from weir.lang.backend.base import Piece, Prompt, Score, text_only
from weir.lang.backend.hosted import Hosted, message, open_turn
from weir.lang.backend.service import Service


def OpenAI(
    model_name: str,
    base_url: str = "https://api.openai.com/v1",
    api_key: str | None = None,
    is_chat_model: bool = True,
    timeout: float = 600.0,
) -> Chat | Completions:
    """A model behind an OpenAI-compatible service. api_key: by default OPENAI_API_KEY. timeout: of
    `Service`. Raises ConfigError if OpenAI's own service is given no key."""
    official = "api.openai.com" in base_url
    key = api_key or os.environ.get("OPENAI_API_KEY", "")
    if not key and official:
        raise ConfigError("OpenAI needs a key: set OPENAI_API_KEY, or give api_key")
    service = Service(base_url, {"Authorization": f"Bearer {key}"} if key else None, timeout)
    if not is_chat_model:
        return Completions(service, model_name)
    return Chat(service, model_name, "max_completion_tokens" if official else "max_tokens")


class Completions(Hosted):
    """Continues a text. Turns are plain text, "USER: ...", as there is no template."""

    chats = False
    path = "/completions"

    async def generate(
        self, prompt: Prompt, settings: dict[str, Any]
    ) -> AsyncGenerator[Piece, None]:
        text_only(prompt)
        body = structured(settings) | self._said(prompt)
        async for piece in pieces(self.service, self.path, body):
            yield piece

    def _said(self, prompt: Prompt) -> dict[str, Any]:
        return {"model": self.model, "prompt": prompt.text}

    async def score(self, prompt: Prompt, choices: Sequence[str]) -> list[Score]:
        """One call that echoes the prompt's logprobs. A token that begins in the prompt and ends in
        the choice counts for the choice. An empty prompt becomes a newline, because a first token
        has no logprob."""
        text_only(prompt)
        said = prompt.text or "\n"
        body = {
            "model": self.model,
            "prompt": [said + choice for choice in choices],
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
            first = next(i for i, end in enumerate(ends) if end > len(said))
            first = max(first, 1) if len(ends) > 1 else first
            logprobs = [value or 0.0 for value in echoed["token_logprobs"][first:]]
            found.append(Score([hash(token) for token in echoed["tokens"][first:]], logprobs))
        return found


class Chat(Hosted):
    """Answers a conversation. It cannot continue a turn that has begun: a `gen` must come first in
    the assistant's turn, or the program must speculate (`num_api_spec_tokens`).

    limit: the service's name for `max_tokens`. OpenAI's newer models accept only the new name, and
    many other services only the old one."""

    def __init__(self, service: Service, model: str, limit: str):
        super().__init__(service, model)
        self._limit = limit

    async def generate(
        self, prompt: Prompt, settings: dict[str, Any]
    ) -> AsyncGenerator[Piece, None]:
        if open_turn(prompt):
            raise BadRequest(
                "a chat service cannot go on with a turn that has begun: give the program "
                "num_api_spec_tokens, or let its gen stand first"
            )
        messages = [message(turn, _picture) for turn in prompt.turns]
        body = structured(settings) | {"model": self.model, "messages": messages}
        if "max_tokens" in body:
            body[self._limit] = body.pop("max_tokens")
        if "logprobs" in body:
            body |= {"logprobs": True, "top_logprobs": body["logprobs"]}
        async for piece in pieces(self.service, "/chat/completions", body):
            yield piece


async def pieces(service: Service, path: str, body: dict[str, Any]) -> AsyncGenerator[Piece, None]:
    """Stream the answer to one call of either endpoint."""
    body = body | {"stream": True, "stream_options": {"include_usage": True}}
    async for event in service.events(path, body):
        usage = _used(service, event)
        for choice in event["choices"]:
            said = choice.get("delta") or choice.get("message") or {}
            text = choice.get("text") or said.get("content") or ""
            logprobs = _logprobs(choice.get("logprobs"))
            yield Piece(text, choice["index"], choice.get("finish_reason"), logprobs, **usage)
        if usage and not event["choices"]:
            yield Piece("", **usage)


def structured(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings as fields of a request: constraints on the answer in the server's format."""
    body = dict(settings)
    regex, schema = body.pop("regex", None), body.pop("json_schema", None)
    if regex is not None:
        body["structured_outputs"] = {"regex": regex}
    if schema is not None:
        shape = {"name": "answer", "schema": schema, "strict": True}
        body["response_format"] = {"type": "json_schema", "json_schema": shape}
    return body


def _used(service: Service, event: dict[str, Any]) -> dict[str, Any]:
    """The token counts of an event, if it has them; also adds them to the service's."""
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


def _logprobs(told: dict[str, Any] | None) -> list[Logprob] | None:
    """Logprobs in the format of completions (columns) or of chats. Services give no token ids (here
    -1), and the rank is known only among the listed tokens (else 0)."""
    if told is None:
        return None
    rows: list[tuple[str, float, list[tuple[str, float]]]] = []
    if "content" in told:
        for one in told["content"] or ():
            top = [(t["token"], t["logprob"]) for t in one["top_logprobs"]]
            rows.append((one["token"], one["logprob"], top))
    else:
        tops = told.get("top_logprobs") or [None] * len(told["tokens"])
        columns = zip(told["tokens"], told["token_logprobs"], tops, strict=True)
        for token, logprob, found in columns:
            top = sorted((found or {}).items(), key=lambda entry: -entry[1])
            rows.append((token, logprob, top))
    return [
        _logprob(token, logprob, top, [_logprob(*entry, top) for entry in top])
        for token, logprob, top in rows
    ]


def _logprob(
    token: str, logprob: float, top: list[tuple[str, float]], entries: Sequence[Logprob] = ()
) -> Logprob:
    rank = next((at for at, (text, _) in enumerate(top, 1) if text == token), 0)
    return Logprob(-1, token, list(token.encode("utf-8", "replace")), logprob, rank, list(entries))


def _picture(url: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}}
