"""A Weir server as a backend, or an SGLang one that serves the same endpoints."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from typing import Any

from weir.lang.backend.base import Piece, Prompt, Score, Turn
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
        """What the choices share is computed first; then all of them at once, from two tokens
        before the prompt's end, which may merge with a choice (token healing)."""
        start = 0
        if prompt.text:
            plain = await self._read(prompt.text, 0)
            start = max(0, plain["prompt_tokens"] - 2)
