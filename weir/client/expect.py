"""Predicts on a thread how long answers will be, and tells the engine: it ranks requests by that.

A request is handed to the engine at once and its prediction follows; nobody waits for it. How long
answers were is told to the ranker, which may learn from it. Knows a ranker only as something that
turns texts into numbers.
"""

import asyncio
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

from weir.client.assemble import Assembly
from weir.errors import BadRequest
from weir.ranker.log import Answered, LengthLog
from weir.text import Text
from weir.wire import Lengths

log = logging.getLogger(__name__)

BATCH = 64  # prompts whose lengths are told at once, and answers that are learned from at once
LATEST = 256  # answers kept until then; the rest are not learned from
REST = 99  # times as long as it took, nothing is learned: the engine may need the cores
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

    def answered(self, finished: Assembly) -> Answered | None:
        """How long the answer was, the mean of several choices; None of what failed or was aborted,
        and of what is no answer."""
        reasons, tokens = finished.finish_reasons, finished.usage.completion_tokens
        if not tokens or {*reasons} - {"stop", "length"}:
            return None
        prompt = self.read(finished.prompt, finished.prompt_ids)
        return Answered(prompt, tokens / len(reasons), "length" in reasons)


class LengthListener:
    """Writes down how long answers are, where the operator asks for it: what a ranker is trained
    on. A listener of the client."""

    def __init__(self, text: Text, model: str, log: LengthLog):
        self._reader = Reader(text)
        self._model = model
        self._log = log

    def __call__(self, finished: Assembly) -> None:
        if (answered := self._reader.answered(finished)) is not None:
            self._log.add(answered, self._model)


class Ranker(Protocol):
    """memory: answers that it learns from; 0: it does not. taus: how well it ranks, by way of doing
    so, once it knows."""

    memory: int
    taus: dict[str, float]

    def predict(self, prompts: Sequence[str]) -> list[float]:
        """Tokens expected of the answers."""
        ...

    def learn(self, answers: Sequence[Answered]) -> None:
        """Take in how long answers were."""
        ...


class Forecast:
    """Predictions for the requests of one client.

    send: hands them to the engine. A ranker that raises is not asked again; the engine is told why
    and goes on without. One that fails to learn stays as it is."""

    def __init__(self, ranker: Ranker, text: Text, send: Callable[[Lengths], None]):
        self.failure = ""
        self._ranker = ranker
        self._send = send
        self._reader = Reader(text)
        self._new: list[Assembly] = []
        self._task: asyncio.Task[None] | None = None
        self._thread = ThreadPoolExecutor(1, "weir-ranker")
        self._learns = ranker.memory > 0
        self._ended: deque[Assembly] = deque(maxlen=LATEST)
        self._rested = 0.0  # when it may learn again

    def add(self, assembly: Assembly) -> None:
        """Predict for a request that the engine has just been handed."""
        if self.failure:
            self._send(Lengths(error=self.failure))
        elif assembly.submits[0].sampling.max_tokens > 1:
            self._new.append(assembly)
            if self._task is None or self._task.done():
                self._task = asyncio.create_task(self._run())

    def settle(self, finished: Assembly) -> None:
        """Learn from a request that has ended: a listener of the client."""
        if self.failure or not self._learns:
            return
        self._ended.append(finished)
        if len(self._ended) >= BATCH and time.monotonic() >= self._rested:
            self._rested = math.inf
            self._thread.submit(self._learn, list(self._ended))
            self._ended.clear()

    @property
    def taus(self) -> dict[str, float]:
        return self._ranker.taus

    def close(self) -> None:
        self._learns = False
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

    def _learn(self, ended: list[Assembly]) -> None:
        began = time.monotonic()
        try:
            found = map(self._reader.answered, ended)
            self._ranker.learn([answered for answered in found if answered is not None])
            self._rested = time.monotonic() + REST * (time.monotonic() - began)
        except Exception as error:  # predictions go on as they are
            self._learns = False
            log.warning("the ranker failed to learn from answers, and no longer does: %r", error)
