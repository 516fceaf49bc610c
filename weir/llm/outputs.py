"""What `LLM` and `AsyncLLM` return, with vLLM's names."""

from msgspec import Struct
from msgspec.structs import replace

from weir.client import Logprob, Output, Timing
from weir.client.assemble import Assembly

Position = dict[int, Logprob]
"""The logprobs of one position by token id: the chosen token's and those of the most likely."""


class CompletionOutput(Struct):
    """One choice. error: what happened, if `finish_reason` is "error"."""

    index: int
    text: str = ""
    token_ids: list[int] = []
    cumulative_logprob: float | None = None
    logprobs: list[Position] | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    error: str = ""

    def add(self, output: Output) -> None:
        self.text += output.text
        self.token_ids = self.token_ids + output.token_ids
        if output.logprobs is not None:
            self.logprobs = (self.logprobs or []) + [position(p) for p in output.logprobs]
            total = sum(entry.logprob for entry in output.logprobs)
            self.cumulative_logprob = (self.cumulative_logprob or 0.0) + total
        if output.finish_reason is not None:
            self.finish_reason = output.finish_reason
            self.stop_reason = output.stop_reason
            self.error = output.error


class RequestOutput(Struct):
    """One prompt and its choices."""

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    prompt_logprobs: list[Position | None] | None
    outputs: list[CompletionOutput]
    finished: bool
    metrics: Timing
    num_cached_tokens: int = 0


def position(entry: Logprob) -> Position:
    return {top.token_id: top for top in entry.top} | {entry.token_id: entry}


def begin(assembly: Assembly) -> list[CompletionOutput]:
    """The choices of a request, still empty, to which its events are added."""
    return [CompletionOutput(index=choice.index) for choice in assembly.choices]


def request_output(assembly: Assembly, choices: list[CompletionOutput]) -> RequestOutput:
    """A snapshot: later events do not change it."""
    scored: list[Position | None] | None = None
    if assembly.prompt_logprobs is not None:
        scored = [None if one is None else position(one) for one in assembly.prompt_logprobs]
    return RequestOutput(
        request_id=assembly.id,
        prompt=assembly.prompt,
        prompt_token_ids=assembly.prompt_ids,
        prompt_logprobs=scored,
        outputs=[replace(choice) for choice in choices],
        finished=all(choice.finish_reason is not None for choice in choices),
        metrics=replace(assembly.timing),
        num_cached_tokens=assembly.usage.cached_tokens,
    )
