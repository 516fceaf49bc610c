"""Reads an answer as it comes: what was thought, what is said, and calls of tools.

Models that think write `<think>`, what they think, `</think>` and what they say; some templates
open the tag in the prompt. What a model writes between other tags stays in the text.
"""

from typing import Literal

from weir.client import Output
from weir.server.answers import ToolCall
from weir.server.jobs import Job
from weir.server.tools import Calls, Toolbox, before
from weir.text import Text

OPEN, CLOSE = "<think>", "</think>"


def thinks(text: Text) -> bool:
    """Whether a model's chat template or vocabulary has the tags, and its answers show them."""
    close = text.tokenizer.token_to_id(CLOSE)
    return close not in text.special and (close is not None or CLOSE in (text.chat_template or ""))


def inside(prompt: str) -> bool:
    """Whether an answer begins within a thought."""
    return prompt.rstrip().endswith(OPEN)


def closed(prompt: str) -> str:
    """A prompt that ends within a thought, with nothing thought."""
    return f"{prompt.rstrip()}\n\n{CLOSE}\n\n"


class Thoughts:
    """Tells what was thought from what is said; newlines around either are neither. inside: the
    answer begins within a thought."""

    def __init__(self, inside: bool):
        self._inside = inside
        self._mode: Literal["start", "thought", "gap", "said"] = "start"
        self._held = ""
        self.begun = False  # whether the answer has a thought
        self._any = False  # whether something was thought

    def push(self, text: str, last: bool) -> tuple[str, str]:
        """What is new: thought, and said."""
        if self._mode == "said":
            return "", text
        held, self._held = self._held + text, ""
        thought = ""
        if self._mode == "start":
            begun = held.lstrip()
            if OPEN.startswith(begun[: len(OPEN)]) and len(begun) < len(OPEN) and not last:
                self._held = held
                return "", ""
            opened = begun.startswith(OPEN)
            self.begun = opened or self._inside
            self._mode = "thought" if self.begun else "said"
            held = begun.removeprefix(OPEN) if opened else held
        if self._mode == "thought":
            thought, found, held = self._thought(held, last)
            self._held, self._mode = ("", "gap") if found else (held, "thought")
            held = held if found else ""
        if self._mode == "gap":
            held = held.lstrip("\n")
            self._mode = "said" if held else "gap"
        return thought, held

    def _thought(self, held: str, last: bool) -> tuple[str, bool, str]:
        shown, found, rest = before(held, CLOSE, last)
        kept = shown.rstrip("\n")
        if not found and not last:
            rest = shown[len(kept) :] + rest
        if not self._any:
            kept = kept.lstrip("\n")
        self._any = self._any or bool(kept)
        return kept, found, rest


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
        self._calls = Calls(toolbox.must) if toolbox.tools else None

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
