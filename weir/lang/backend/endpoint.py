"""A Weir server as a backend, or an SGLang one that serves the same endpoints."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from typing import Any

from weir.lang.backend.base import Piece, Prompt, Score, Turn, healed
from weir.lang.backend.openai import Completions
from weir.lang.backend.service import Service
from weir.lang.backend.turns import Turns
from weir.lang.loop import spawn, wait
from weir.text.template import ChatTemplate


class RuntimeEndpoint(Completions):
    """base_url: the server's root. Raises EngineDead when it does not answer."""

    def __init__(self, base_url: str, api_key: str | None = None):
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else None
        service = Service(base_url, headers)
        models = wait(spawn(service.get("/v1/models")))
        super().__init__(service, models["data"][0]["id"])
        self._turns = Turns(_Template(wait(spawn(service.get("/tokenizer_info")))))

    def turn(self, roles: Sequence[str]) -> Turn:
        return self._turns.turn(roles)

    async def generate(
        self, prompt: Prompt, settings: dict[str, Any]
    ) -> AsyncGenerator[Piece, None]:
        body = self._body(settings) | {
            "prompt": prompt.text,
            "add_special_tokens": not prompt.templated,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        async for event in self.service.events("/v1/completions", body):
            for piece in self._pieces(event):
                yield piece

    async def score(self, prompt: Prompt, choices: Sequence[str]) -> list[Score]:
        """See `Runtime.score`: one call for all choices."""
        plain, *whole = await asyncio.gather(
            *(self._encode(prompt.text + choice, prompt) for choice in ("", *choices))
        )
        same = healed(plain, whole)
        body = {
            "input_ids": whole,
            "sampling_params": {"max_new_tokens": 0},
            "return_logprob": True,
            "logprob_start_len": same - 1,
        }
        answers = await self.service.post("/generate", body)
        echoed = [answer["meta_info"]["input_token_logprobs"][1:] for answer in answers]
        return [Score([t for _, t, _ in one], [value for value, _, _ in one]) for one in echoed]

    async def _encode(self, text: str, prompt: Prompt) -> list[int]:
        body = {"prompt": text, "add_special_tokens": not prompt.templated}
        tokens: list[int] = (await self.service.post("/tokenize", body))["tokens"]
        return tokens

    async def cache(self, prompt: Prompt) -> None:
        body = self._body({"max_tokens": 0}) | {
            "prompt": prompt.text,
            "add_special_tokens": not prompt.templated,
        }
        await self.service.post("/v1/completions", body)

    async def flush(self) -> None:
        await self.service.post("/flush_cache", None)


class _Template:
    """The server's chat template, rendered here."""

    def __init__(self, info: dict[str, Any]):
        template = info.get("chat_template")
        names = {key: value for key, value in info.items() if key.endswith("_token") and value}
        self._template = ChatTemplate({"default": template} if template else {}, names)

    def chat(
        self, messages: Sequence[dict[str, Any]], *, add_generation_prompt: bool = True
    ) -> str:
        return self._template.render(messages, None, add_generation_prompt, False, None, {})
