"""Predicts on a thread how long answers will be, and tells the engine: it ranks requests by that.

A request is handed to the engine at once and its prediction follows; nobody waits for it. Knows a
ranker only as something that turns texts into numbers.
"""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

from weir.client.assemble import Assembly
from weir.errors import BadRequest
from weir.text import Text
from weir.wire import Lengths

BATCH = 64  # prompts whose lengths are told at once
MARK = "weir's mark"


class Reader:
    """Finds what was asked in a prompt: without what a chat template puts around an only message,
    which is the same in every prompt."""

    def __init__(self, text: Text):
        self._text = text
        try:
            whole = text.chat([{"role": "user", "content": MARK}])
        except BadRequest:  # the model has no template
            whole = ""
        self._before, found, after = whole.partition(MARK)
        self._after = after if found else ""

    def read(self, prompt: str | None, ids: list[int]) -> str:
        """`prompt` is None where ids were given; they are decoded then."""
        if prompt is None:
            prompt = self._text.decode(ids)
        return prompt.removeprefix(self._before).removesuffix(self._after)


class Ranker(Protocol):
    def predict(self, prompts: Sequence[str]) -> list[float]:
        """Tokens expected of the answers."""
        ...


class Forecast:
    """Predictions for the requests of one client.

    send: hands them to the engine. A ranker that raises is not asked again; the engine is told why
    and goes on without."""

    def __init__(self, ranker: Ranker, text: Text, send: Callable[[Lengths], None]):
        self.failure = ""
        self._ranker = ranker
        self._send = send
        self._reader = Reader(text)
        self._new: list[Assembly] = []
        self._task: asyncio.Task[None] | None = None
        self._thread = ThreadPoolExecutor(1, "weir-ranker")

    def add(self, assembly: Assembly) -> None:
        """Predict for a request that the engine has just been handed."""
        if self.failure:
            self._send(Lengths(error=self.failure))
        elif assembly.submits[0].sampling.max_tokens > 1:
            self._new.append(assembly)
            if self._task is None or self._task.done():
                self._task = asyncio.create_task(self._run())

    def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
        self._thread.shutdown(wait=False)

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while self._new and not self.failure:
            batch, self._new = self._new[:BATCH], self._new[BATCH:]
            batch = [assembly for assembly in batch if not assembly.finished]
            try:
                tokens = await loop.run_in_executor(self._thread, self._predict, batch)
            except Exception as error:
                self.failure = f"the ranker failed: {error!r}"
                self._send(Lengths(error=self.failure))
                return
            expected = {
                submit.uid: length
                for assembly, length in zip(batch, tokens, strict=True)
                for submit in assembly.submits
            }
            self._send(Lengths(expected))

    def _predict(self, batch: list[Assembly]) -> list[float]:
        return self._ranker.predict([self._reader.read(a.prompt, a.prompt_ids) for a in batch])
