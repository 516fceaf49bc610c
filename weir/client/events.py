"""The values that describe a request's life to a frontend. Data only."""

from __future__ import annotations

from typing import Any

from msgspec import Struct, field

from weir.params import SamplingParams


class ModelInfo(Struct):
    """What frontends know about the model."""

    name: str  # shown to callers: the first of `names`
    names: list[str]  # all that are accepted
    context: int  # longest sequence, prompt and answer together
    vocab: int
    eos: list[int]
    info: dict[str, Any] = {}  # device, dtype, kernels, start-up seconds: for /server_info
    sampling: SamplingParams = field(default_factory=SamplingParams)  # defaults of requests


class Logprob(Struct):
    """The logprob of one position, with text. Entries of `top` have an empty `top` themselves."""

    token_id: int
    token: str
    bytes: list[int]
    logprob: float
    rank: int  # 1: the most likely
    top: list[Logprob] = []


class Output(Struct):
    """One event of one choice, with what is new since the last; or several joined (`add`)."""

    index: int = 0
    text: str = ""  # without what may begin a stop string or is part of a character
    token_ids: list[int] = []
    logprobs: list[Logprob] | None = None  # one per token id, if requested
    finish_reason: str | None = None  # "stop", "length", "abort", "error"; only in the last event
    stop_reason: int | str | None = None  # the stop token id or string that matched; None: EOS
    error: str = ""  # with finish_reason "error": what happened and what to do
    refused: bool = False  # the error is the request's own, not the engine's

    def add(self, output: Output) -> None:
        """Join the next event of this choice to this one."""
        self.text += output.text
        self.token_ids.extend(output.token_ids)
        if output.logprobs is not None:
            self.logprobs = (self.logprobs or []) + output.logprobs
        if output.finish_reason is not None:
            self.finish_reason = output.finish_reason
            self.stop_reason = output.stop_reason
            self.error, self.refused = output.error, output.refused


class Usage(Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0  # over all choices
    cached_tokens: int = 0  # prompt tokens found in the cache
    loaded_tokens: dict[str, int] = {}  # of these, by tier, those loaded from "cpu" or "disk"


class Timing(Struct):
    """Seconds of `time.monotonic()`, one clock for server and engine; -1: not yet."""

    arrival: float = -1.0
    started: float = -1.0  # first admitted by the scheduler
    first: float = -1.0  # first token
    last: float = -1.0  # latest token
