"""Splits a streamed answer into reasoning, text and tool calls."""

from weir.client import Output
from weir.server.jobs import Job
from weir.server.tools import Calls, Toolbox, ToolCall
from weir.text.thoughts import Thoughts


class Reader:
    """Reads one answer to a chat. thoughts: None if the model does not reason, or its reasoning
    stays in the text. close: the token that ends it, if any; the job counts tokens up to it."""

    def __init__(
        self, job: Job, toolbox: Toolbox, thoughts: Thoughts | None, close: int | None = None
    ):
        self._job = job
        self._close = close
        self._tokens = 0  # that may be reasoning and are not added to the job yet
        self._thoughts = thoughts
        begun = toolbox.must and not (thoughts is not None and thoughts.inside)
        self._calls = Calls(begun) if toolbox.tools else None

    @property
    def called(self) -> bool:
        """Whether at least one call has begun and the last one is complete."""
        return self._calls is not None and self._calls.complete

    def push(self, output: Output) -> tuple[str, str, list[ToolCall]]:
        """The new reasoning, text, and tool calls (or more arguments of the open call)."""
        thought, text, last = "", output.text, output.finish_reason is not None
        if self._thoughts is not None:
            thought, text = self._thoughts.push(text, last)
            self._count(output.token_ids)
            if self._thoughts.begun:
                self._job.reasoning_tokens += self._tokens
                self._tokens = 0
        if self._calls is None:
            return thought, text, []
        return thought, *self._calls.push(text, last)

    def _count(self, tokens: list[int]) -> None:
        if self._close is not None:  # counts tokens, because the text may lag behind them
            ended = self._close in tokens
            self._tokens += tokens.index(self._close) + 1 if ended else len(tokens)
            self._close = None if ended else self._close
