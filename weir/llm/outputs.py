"""What `LLM` and `AsyncLLM` return, in vLLM's names."""

from msgspec import Struct
from msgspec.structs import replace

from weir.client import Logprob, Output, Timing
from weir.client.assemble import Assembly

Position = dict[int, Logprob]
"""The logprobs of one position: of the chosen token and of the most likely ones, by token id."""


class CompletionOutput(Struct):
    """One choice. `error` says what happened when `finish_reason` is "error"."""

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
    """One prompt and what was made of it."""

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


def request_output(assembly: Assembly) -> RequestOutput:
    """The output of a request that has only begun."""
    return RequestOutput(
        request_id=assembly.id,
        prompt=assembly.prompt,
        prompt_token_ids=assembly.prompt_ids,
        prompt_logprobs=None,
        outputs=[CompletionOutput(index=choice.index) for choice in assembly.choices],
        finished=False,
        metrics=assembly.timing,
    )


def update(output: RequestOutput, assembly: Assembly) -> RequestOutput:
    """Bring everything but the choices up to date."""
    output.finished = all(c.finish_reason is not None for c in output.outputs)
    output.num_cached_tokens = assembly.usage.cached_tokens
    if assembly.prompt_logprobs is not None and output.prompt_logprobs is None:
        entries = assembly.prompt_logprobs
        output.prompt_logprobs = [None if entry is None else position(entry) for entry in entries]
    return output


def copy(output: RequestOutput) -> RequestOutput:
    """A snapshot: later events do not change it."""
    choices = [replace(choice) for choice in output.outputs]
    return replace(output, outputs=choices, metrics=replace(output.metrics))
