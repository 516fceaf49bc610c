"""A Weir server as a backend, or an SGLang one that serves the same endpoints."""

import asyncio
from collections.abc import Sequence
from typing import Any

from weir.lang.backend.base import Prompt, Score, Turn, first, healed, text_only
from weir.lang.backend.openai import Completions
from weir.lang.backend.service import Service
from weir.lang.backend.turns import turns
from weir.lang.loop import spawn, wait
from weir.text.template import ChatTemplate


class RuntimeEndpoint(Completions):
    """base_url: the server's root. timeout: of `Service`. Raises EngineDead if none answers."""

    path = "/v1/completions"

    def __init__(self, base_url: str, api_key: str | None = None, timeout: float = 600.0):
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else None
        service = Service(base_url, headers, timeout)
        model = wait(spawn(service.get("/v1/models")))["data"][0]
        super().__init__(service, model["id"])
        self._ours = model.get("owned_by") == "weir"  # others may not have the field `program`
        info = wait(spawn(service.get("/tokenizer_info")))
        template = info.get("chat_template")
        names = {key: value for key, value in info.items() if key.endswith("_token") and value}
        chat = ChatTemplate({"default": template} if template else {}, names)
        self._first = first(info)
        self._turn = turns(lambda said, asks: chat.render(said, None, asks, False, None, {}))

    def turn(self, roles: Sequence[str]) -> Turn:
        return self._turn(tuple(roles))

    def _said(self, prompt: Prompt) -> dict[str, Any]:
        templated = {"add_special_tokens": not prompt.templated}
        return super()._said(prompt) | templated | self._program(prompt)

    def _program(self, prompt: Prompt) -> dict[str, Any]:
        return {"program": prompt.program} if self._ours else {}

    async def score(self, prompt: Prompt, choices: Sequence[str]) -> list[Score]:
        """See `Runtime.score`: one call for all choices."""
        text_only(prompt)
        texts = [self._first, prompt.text, *(prompt.text + choice for choice in choices)]
        start, plain, *whole = await asyncio.gather(*(self._encode(t, prompt) for t in texts))
        same, whole = healed(start, plain, whole)
        body = {
            "input_ids": whole,
            "sampling_params": {"max_new_tokens": 0},
            "return_logprob": True,
            "logprob_start_len": same - 1,
        } | self._program(prompt)
        answers = await self.service.post("/generate", body)
        echoed = [answer["meta_info"]["input_token_logprobs"][1:] for answer in answers]
        return [Score([t for _, t, _ in one], [value for value, _, _ in one]) for one in echoed]

    async def _encode(self, text: str, prompt: Prompt) -> list[int]:
        body = {"prompt": text, "add_special_tokens": not prompt.templated}
        tokens: list[int] = (await self.service.post("/tokenize", body))["tokens"]
        return tokens

    async def cache(self, prompt: Prompt) -> None:
        await self.service.post(self.path, {"max_tokens": 0} | self._said(prompt))

    async def flush(self) -> None:
        await self.service.post("/flush_cache", None)
