"""The live requests: checks and admits them, routes deltas to them, and reports their ends.

Pure, like `assemble`: what to send to the engine is returned, and time is an argument.
"""

import logging
import random
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property

from weir.client.assemble import Assembly, Choice
from weir.client.events import ModelInfo, Output, Timing, Usage
from weir.core import Delta, Grammar
from weir.errors import BadRequest, Overloaded
from weir.params import SamplingParams, check_ids
from weir.text import Text
from weir.wire import Submit

log = logging.getLogger(__name__)

Event = tuple[Assembly, Output]

SUSPICIOUS = 16
"""With more characters per token of context, a text's length is checked before tokenisation."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How much may wait in the engine's queue; 0: no limit."""

    requests: int = 2048
    tokens: int = 0


class Ledger:
    """The live requests of one engine, in order of submission.

    seed: for drawing the seeds of requests without one; None: from the system."""

    def __init__(
        self, text: Text, model: ModelInfo, limits: Limits | None = None, *, seed: int | None = None
    ):
        self.text = text
        self.model = model
        self.limits = limits or Limits()
        self.live: dict[str, Assembly] = {}
        self.routes: dict[int, tuple[Assembly, Choice]] = {}  # by uid: the open choices
        self.listeners: list[Callable[[Assembly], None]] = []
        self.rejected: dict[str, int] = {}
        self.running = 0  # as the engine last reported
        self._random = random.Random(seed)
        self._last_uid = 0
        self._waiting: dict[int, int] = {}  # uid → prompt tokens, until its first token
        self._drained: deque[float] = deque(maxlen=64)  # when requests left the queue

    # -- admission -----------------------------------------------------------------------------

    def admit(
        self,
        prompt: str | list[int],
        params: SamplingParams,
        *,
        now: float,
        request_id: str | None = None,
        priority: int = 0,
        user: str = "",
        program: str = "",
        pool: str | None = None,
        add_special_tokens: bool = True,
        grammar: Grammar | None = None,
    ) -> Assembly:
        """Check a request and add it; the caller sends its `submits` to the engine.

        grammar: the compiled `structured_outputs` of `params`. Raises `BadRequest` naming the
        field, or `Overloaded` when too much is waiting.
        """
        if (grammar is None) != (params.structured_outputs is None):
            raise RuntimeError("a request with structured outputs takes its compiled grammar along")
        try:
            if not isinstance(priority, int):
                why = f"priority must be a whole number, got {priority!r}"
                raise BadRequest(why, param="priority")
            ids = self._checked(prompt, params, request_id, pool, add_special_tokens)
            room = self._room(len(ids), params, pool)
        except BadRequest as error:
            self.reject(error.code or "bad_request")
            raise
        self._check_queue(params.n, len(ids), now)
        seed = params.seed if params.seed is not None else self._random.getrandbits(63)
        submits = [
            Submit(
                uid=self._last_uid + 1 + index,
                tokens=ids,
                sampling=params.sampling(
                    index=index, seed=seed, eos=self.model.eos, max_tokens=room, pool=pool
                ),
                arrival=now,
                priority=priority,
                user=user,
                program=program.partition("/")[0],
                grammar=grammar,
            )
            for index in range(params.n)
        ]
        self._last_uid += params.n
        assembly = Assembly(
            id=request_id or uuid.uuid4().hex,
            prompt=prompt if isinstance(prompt, str) else None,
            prompt_ids=ids,
            params=params,
            program=program,
            text=self.text,
            submits=submits,
            usage=Usage(prompt_tokens=len(ids)),
            timing=Timing(arrival=now),
        )
        self.live[assembly.id] = assembly
        for choice in assembly.choices:
            self.routes[choice.submit.uid] = (assembly, choice)
            self._waiting[choice.submit.uid] = len(ids)
        return assembly

    def reject(self, reason: str) -> None:
        self.rejected[reason] = self.rejected.get(reason, 0) + 1

    def _checked(
        self,
        prompt: str | list[int],
        params: SamplingParams,
        request_id: str | None,
        pool: str | None,
        add_special_tokens: bool,
    ) -> list[int]:
        """Check everything about a request except its length; returns the prompt's token ids."""
        params.check(self.model.vocab)
        if params.stops and not params.detokenize:
            raise BadRequest("stop strings need detokenize=true", param="stop")
        if pool not in (None, "mean", "last"):
            raise BadRequest(f'pooling must be "mean" or "last", got {pool!r}', param="pooling")
        if pool is not None and params.n != 1:
            raise BadRequest(f"a pooled request has one answer, got n={params.n}", param="n")
        if not isinstance(request_id, str | None):
            raise BadRequest(f"request_id must be text, got {request_id!r}", param="request_id")
        if request_id in self.live:
            raise BadRequest(
                f"request id {request_id!r} belongs to a request that is still running: "
                "use another one or wait for its end",
                param="request_id",
                code="duplicate_request_id",
            )
        if isinstance(prompt, str):
            self._check_length(prompt)
            ids = self.text.encode(prompt, add_special_tokens=add_special_tokens)
        else:
            ids = _listed(prompt)
        if set(map(type, ids)) - {int}:
            raise BadRequest("token ids must be integers", param="prompt")
        if not ids:
            raise BadRequest("the prompt is empty: give it at least one token", param="prompt")
        if min(ids) < 0 or max(ids) >= self.model.vocab:
            check_ids(ids, self.model.vocab, "prompt")
        return ids

    def _check_length(self, prompt: str) -> None:
        """Refuse a text that cannot fit, however it is tokenised, before tokenising it."""
        context = self.model.context
        if len(prompt) <= SUSPICIOUS * context:
            return
        least = -(-len(prompt) // self._longest_token)
        if least > context:
            raise BadRequest(
                f"This model's maximum context length is {context} tokens, but the prompt of "
                f"{len(prompt)} characters has at least {least}: shorten it",
                param="prompt",
                code="context_length_exceeded",
            )

    @cached_property
    def _longest_token(self) -> int:
        """Bytes of the longest token: no token has more characters."""
        return max(len(self.text.token_bytes(t)) for t in range(self.text.vocab)) or 1

    def _room(self, length: int, params: SamplingParams, pool: str | None) -> int:
        """The most tokens to generate. Raises `BadRequest` if the context is too short."""
        context = self.model.context
        wanted = 0 if pool is not None else params.max_tokens
        least = max(1, params.min_tokens) if wanted is None else wanted
        if length + least > context:
            field = "min_tokens" if wanted is None else "max_tokens"
            field = "prompt" if length >= context else field
            raise BadRequest(
                f"This model's maximum context length is {context} tokens, but {length + least} "
                f"were requested: {length} in the prompt and {least} to generate. Shorten the "
                "prompt or ask for fewer tokens",
                param=field,
                code="context_length_exceeded",
            )
        return context - length if wanted is None else wanted

    def _check_queue(self, requests: int, length: int, now: float) -> None:
        """Raise `Overloaded` if `requests` more prompts of `length` tokens may not wait."""
        limits = self.limits
        producing = len(self.routes) - len(self._waiting)
        queued = len(self.routes) - max(self.running, producing)
        excess = queued + requests - limits.requests if limits.requests else 0
        if excess > 0 and queued > 0:
            self.reject("queue_full")
            raise Overloaded(
                f"{queued} requests are waiting and at most {limits.requests} may: try again later",
                retry_after=self._drain_time(excess, now),
            )
        if limits.tokens and self._waiting:
            tokens = sum(self._waiting.values())
            if tokens + requests * length > limits.tokens:
                self.reject("queue_tokens")
                raise Overloaded(
                    f"prompts of {tokens} tokens are waiting and at most {limits.tokens} may: "
                    "try again later",
                    retry_after=self._drain_time(1, now),
                )

    def _drain_time(self, requests: int, now: float) -> float:
        """Seconds until `requests` have left the queue at the recent rate; 1 to 60."""
        drained = self._drained
        if len(drained) < 2:
            return 1.0
        rate = len(drained) / max(now - drained[0], 1e-3)
        return min(60.0, max(1.0, requests / rate))

    # -- progress ------------------------------------------------------------------------------

    def settle(self, deltas: Iterable[Delta], now: float) -> tuple[list[Event], list[int]]:
        """The events of deltas, and the uids to abort because a stop string has ended them.

        Deltas of requests that are no longer live are ignored.
        """
        events: list[Event] = []
        aborts: list[int] = []
        for delta in deltas:
            route = self.routes.get(delta.uid)
            if route is None:
                continue
            assembly, choice = route
            try:
                for each, due in assembly.due(choice, delta):
                    self._push(assembly, each, due, now, events, aborts)
            except Exception as error:  # a failure in one request must not affect others
                log.exception("the answer to request %s could not be assembled", assembly.id)
                ended, uids = self.end(assembly, "error", f"this answer cannot be shown: {error!r}")
                events += ended
                aborts += uids
        return events, aborts

    def _push(
        self,
        assembly: Assembly,
        choice: Choice,
        delta: Delta,
        now: float,
        events: list[Event],
        aborts: list[int],
    ) -> None:
        output = assembly.push(choice, delta, now) if choice.finish_reason is None else None
        if output is None:
            return
        if self._waiting.pop(delta.uid, None) is not None:
            self._drained.append(now)
        events.append((assembly, output))
        if choice.finish_reason is not None:
            del self.routes[delta.uid]
            if delta.done is None:
                aborts.append(delta.uid)
            self._leave(assembly)

    def end(
        self, assembly: Assembly, reason: str, error: str = ""
    ) -> tuple[list[Event], list[int]]:
        """End a live request now, as `settle` would; its uids are no longer routed."""
        if assembly.finished:
            return [], []
        uids = [c.submit.uid for c in assembly.choices if self.routes.pop(c.submit.uid, None)]
        for uid in uids:
            self._waiting.pop(uid, None)
        events = [(assembly, output) for output in assembly.end(reason, error)]
        self._leave(assembly)
        return events, uids

    def _leave(self, assembly: Assembly) -> None:
        if not assembly.finished:
            return
        del self.live[assembly.id]
        for listener in self.listeners:
            try:
                listener(assembly)
            except Exception:  # an observer must not stop what it observes
                log.exception("a listener failed on request %s", assembly.id)


def _listed(prompt: Iterable[int]) -> list[int]:
    """A prompt's token ids. Raises `BadRequest` for bytes, dicts and what is no list."""
    with suppress(TypeError):
        if not isinstance(prompt, bytes | Mapping):
            return list(prompt)
    raise BadRequest("a prompt must be text or a list of token ids", param="prompt")
