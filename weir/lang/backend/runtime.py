"""A Weir engine as a backend: in a supervised process of its own, or behind a given client."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from typing import Any

from weir.client import Client
from weir.errors import EngineDead
from weir.lang.backend.base import Piece, Prompt, Score, Turn, first, healed, text_only
from weir.lang.backend.turns import turns
from weir.lang.loop import spawn, wait
from weir.llm.online import AsyncLLM
from weir.params import SamplingParams, convert


class Runtime:
    """The engine of one model.

    ```
    weir.set_default_backend(weir.Runtime("smollm2-135m"))
    ```
    settings: fields of `Config`. Raises ConfigError.
    """

    chats = False

    def __init__(self, model_path: str, **settings: Any):
        self._take(AsyncLLM(model_path, **settings).client)

    @classmethod
    def of(cls, client: Client) -> Runtime:
        """A backend of a client that is not started yet."""
        runtime = cls.__new__(cls)
        runtime._take(client)
        return runtime

    def _take(self, client: Client) -> None:
        self.client = client
        chat = client.text.chat
        self._turn = turns(lambda said, asks: chat(said, add_generation_prompt=asks))
        wait(spawn(client.start()))

    def shutdown(self) -> None:
        """End the engine."""
        wait(spawn(self.client.close()))

    def turn(self, roles: Sequence[str]) -> Turn:
        return self._turn(tuple(roles))

    async def generate(
        self, prompt: Prompt, settings: dict[str, Any]
    ) -> AsyncGenerator[Piece, None]:
        text_only(prompt)
        params = _params(settings)
        grammar = await self.client.compile(params)
        stream = self.client.submit(
            self._ids(prompt), params, grammar=grammar, program=prompt.program
        )
        async for output in stream:
            if output.finish_reason == "error":
                raise EngineDead(output.error or "the engine could not finish this")
            said = output.text, output.index, output.finish_reason, output.logprobs
            usage = stream.usage
            used = usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens
            yield Piece(*said, *used)

    async def score(self, prompt: Prompt, choices: Sequence[str]) -> list[Score]:
        """Scores all choices concurrently; the tokens that they share are computed once.

        Each choice is tokenised together with the prompt; see `healed`."""
        text_only(prompt)
        start = self._encode(first(self.client.text.special_names), prompt)
        plain, *whole = [self._encode(prompt.text + one, prompt) for one in ("", *choices)]
        same, whole = healed(start, plain, whole)
        params = SamplingParams(max_tokens=0, prompt_logprobs=0, score_from=same)
        streams = [self.client.submit(ids, params, program=prompt.program) for ids in whole]
        for stream in streams:
            await stream.collect()
        found = []
        for ids, stream in zip(whole, streams, strict=True):
            entries = stream.prompt_logprobs or []
            found.append(Score(ids[same:], [e.logprob for e in entries[same:] if e is not None]))
        return found

    async def cache(self, prompt: Prompt) -> None:
        params = SamplingParams(max_tokens=0)
        await self.client.submit(self._ids(prompt), params, program=prompt.program).collect()

    async def flush(self) -> None:
        self.client.flush()

    def _ids(self, prompt: Prompt) -> list[int]:
        return self._encode(prompt.text, prompt)

    def _encode(self, text: str, prompt: Prompt) -> list[int]:
        """Token ids; special tokens are added unless a chat template has written them."""
        return self.client.text.encode(text, add_special_tokens=not prompt.templated)


def _params(settings: dict[str, Any]) -> SamplingParams:
    """A `gen`'s settings; `regex`, `json_schema` as structured outputs. Raises BadRequest."""
    shapes = {"regex": "regex", "json_schema": "json"}
    shape = {shapes[name]: value for name, value in settings.items() if name in shapes}
    rest = {name: value for name, value in settings.items() if name not in shapes}
    return convert(rest | ({"structured_outputs": shape} if shape else {}))
