"""Predicts on a thread how long answers will be, for the engine to rank requests by.

A request goes to the engine at once and its prediction follows; nothing waits for it. The ranker
also gets the true lengths of answers and may learn from them. It is only known as a function from
texts to numbers.
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

BATCH = 64  # prompts of one prediction, and fewest answers to learn from at once
LATEST = 256  # most answers kept to learn from; older ones are dropped
REST = 99  # after learning, pause this many times as long: the engine may need the cores
MARK = "weir's mark"


class Reader:
    """Finds the question in a prompt: removes what a chat template puts around a single message,
    which is the same in all prompts."""

    def __init__(self, text: Text):
        self._text = text
        try:
            whole = text.chat([{"role": "user", "content": MARK}])
        except BadRequest:  # the model has no template
            whole = ""
        self._before, found, after = whole.partition(MARK)
        self._after = after if found else ""

    def read(self, prompt: str | None, ids: list[int]) -> str:
        """prompt: None if only ids were given, which are then decoded."""
        if prompt is None:
            prompt = self._text.decode(ids)
        return prompt.removeprefix(self._before).removesuffix(self._after)

    def answered(self, finished: Assembly) -> Answered | None:
        """The mean length of choices; None if the request failed, was aborted or has no answer."""
        reasons, tokens = finished.finish_reasons, finished.usage.completion_tokens
        if not tokens or {*reasons} - {"stop", "length"}:
            return None
        prompt = self.read(finished.prompt, finished.prompt_ids)
        return Answered(prompt, tokens / len(reasons), "length" in reasons)


class LengthListener:
    """A client's listener that logs the lengths of answers, to train a ranker; optional."""

    def __init__(self, text: Text, model: str, log: LengthLog):
        self._reader = Reader(text)
        self._model = model
        self._log = log

    def __call__(self, finished: Assembly) -> None:
        if (answered := self._reader.answered(finished)) is not None:
            self._log.add(answered, self._model)


class Ranker(Protocol):
    """memory: number of answers that it learns from; 0: it does not learn. taus: Kendall's tau-b of
    its predictions, by predictor, once known."""

    memory: int
    taus: dict[str, float]

    def predict(self, prompts: Sequence[str]) -> list[float]:
        """The expected tokens of each answer."""
        ...

    def learn(self, answers: Sequence[Answered]) -> None:
        """Learn from the lengths of answers."""
        ...


class Forecast:
    """Predictions for the requests of one client.

    send: passes them to the engine. If the ranker raises in a prediction, it is not asked again;
    the engine is told why and works without. If it raises in learning, it learns no more."""

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
        """Predict for a request that was just sent to the engine."""
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
        except Exception as error:  # predictions go on
            self._learns = False
            log.warning("the ranker failed to learn from answers, and no longer does: %r", error)
