"""Separates a model's reasoning from its answer in streamed text.

Models that reason write `<think>`, the thought, `</think>`, then the answer; some templates put the
first tag into the prompt. Text between other tags stays part of the answer.
"""

from typing import Literal

from weir.text import Text
from weir.text.stop import before

OPEN, CLOSE = "<think>", "</think>"
AFTER = "\n\n"  # between the thought and the answer

Told = Literal["as it comes", "at once", "never"]


def thinks(text: Text) -> bool:
    """Whether a model has the tags, in its template or vocabulary, and its answers show them."""
    close = text.tokenizer.token_to_id(CLOSE)
    return close not in text.special and (close is not None or CLOSE in (text.chat_template or ""))


def inside(prompt: str) -> bool:
    """Whether the output after this prompt begins within a thought."""
    return prompt.rstrip().endswith(OPEN)


def closed(prompt: str) -> str:
    """A prompt that ends within a thought, continued so that the thought is empty."""
    return f"{prompt.rstrip()}\n\n{CLOSE}{AFTER}"


class Thoughts:
    """Separates the thought from the answer; newlines around the thought belong to neither.
    inside: the output begins within a thought. told: when the thought is returned."""

    def __init__(self, inside: bool, told: Told = "as it comes"):
        self.inside = inside
        self._told = told
        self._mode: Literal["start", "thought", "gap", "said"] = "start"
        self._held = ""
        self.begun = False  # whether the output has a thought
        self._any = False  # whether the thought is not empty

    def push(self, text: str, last: bool) -> tuple[str, str]:
        """Take more output; return what it adds to the thought and to the answer."""
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
        """Remove the first tag, if there is one. False: not known yet."""
        start = self._held.lstrip()
        if not last and len(start) < len(OPEN) and OPEN.startswith(start):
            return False
        self.begun = self.inside
        if start.startswith(OPEN):
            self._held, self.begun = start[len(OPEN) :], True
        self._mode = "thought" if self.begun else "said"
        return True

    def _thought(self, last: bool) -> str:
        """Take from the held text what surely belongs to the thought, and the tag after it."""
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
