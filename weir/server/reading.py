"""Reads an answer as it comes: what was thought, what is said, and calls of tools.

Models that think write `<think>`, what they think, `</think>` and what they say; some templates
open the tag in the prompt. What a model writes between other tags stays in the text.
"""

from typing import Literal

from weir.client import Output
from weir.server.jobs import Job
from weir.server.tools import Calls, Toolbox, ToolCall, before
from weir.text import Text

OPEN, CLOSE = "<think>", "</think>"
AFTER = "\n\n"  # between a thought and what is said

Told = Literal["as it comes", "at once", "never"]


def thinks(text: Text) -> bool:
    """Whether a model's chat template or vocabulary has the tags, and its answers show them."""
    close = text.tokenizer.token_to_id(CLOSE)
    return close not in text.special and (close is not None or CLOSE in (text.chat_template or ""))


def inside(prompt: str) -> bool:
    """Whether an answer begins within a thought."""
    return prompt.rstrip().endswith(OPEN)


def closed(prompt: str) -> str:
    """A prompt that ends within a thought, with nothing thought."""
    return f"{prompt.rstrip()}\n\n{CLOSE}{AFTER}"


class Thoughts:
    """Tells what was thought from what is said; newlines around either are neither. inside: the
    answer begins within a thought. told: how what was thought is."""

    def __init__(self, inside: bool, told: Told = "as it comes"):
        self.inside = inside
        self._told = told
        self._mode: Literal["start", "thought", "gap", "said"] = "start"
        self._held = ""
        self.begun = False  # whether the answer has a thought
        self._any = False  # whether something was thought

    def push(self, text: str, last: bool) -> tuple[str, str]:
        """What is new: thought, and said."""
        if self._mode == "said":
            return "", text
        self._held += text
        if self._mode == "start" and not self._begin(last):
            return "", ""
        thought = self._thought(last) if self._mode == "thought" else ""
        if self._mode == "thought":
            return thought, ""
        said, self._held = self._held, ""
        if self._mode == "gap":
            said = said.lstrip("\n")
            self._mode = "said" if said else "gap"
        return thought, said

    def _begin(self, last: bool) -> bool:
        """Take the tag, if there is one; false: that cannot be told yet."""
        start = self._held.lstrip()
        if not last and len(start) < len(OPEN) and OPEN.startswith(start):
            return False
        self.begun = self.inside
        if start.startswith(OPEN):
            self._held, self.begun = start[len(OPEN) :], True
        self._mode = "thought" if self.begun else "said"
        return True

    def _thought(self, last: bool) -> str:
        """Take what was surely thought, and the tag after it if it is there."""
        if self._told == "at once" and not last and CLOSE not in self._held:
            return ""
        shown, found, rest = before(self._held, CLOSE, last)
        kept = shown.rstrip("\n")
        self._held = rest if found or last else shown[len(kept) :] + rest
        if found:
            self._mode = "gap"
        if not self._any:
            kept = kept.lstrip("\n")
        self._any = self._any or bool(kept)
        return kept if self._told != "never" else ""


class Reader:
    """Reads one answer to a chat. thoughts: None: the model has none, or they stay in the text.
    close: the token that ends them, if there is one; tokens up to it are counted for the job."""

    def __init__(
        self, job: Job, toolbox: Toolbox, thoughts: Thoughts | None, close: int | None = None
    ):
        self._job = job
        self._close = close
        self._tokens = 0  # of what may be a thought, not told to the job yet
        self._thoughts = thoughts
        begun = toolbox.must and not (thoughts is not None and thoughts.inside)
        self._calls = Calls(begun) if toolbox.tools else None

    @property
    def called(self) -> bool:
        """Whether there was a call, and the last one has come to its end."""
        return self._calls is not None and self._calls.complete

    def push(self, output: Output) -> tuple[str, str, list[ToolCall]]:
        """What is new: thought, text, and calls or what there is more of the arguments of one."""
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
        if self._close is not None:  # the text may lag behind its tokens
            ended = self._close in tokens
            self._tokens += tokens.index(self._close) + 1 if ended else len(tokens)
            self._close = None if ended else self._close
