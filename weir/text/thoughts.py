"""Tells what a model thought from what it says, in text as it comes.

Models that think write `<think>`, what they think, `</think>` and what they say; some templates
open the tag in the prompt. What a model writes between other tags stays in the text.
"""

from typing import Literal

from weir.text import Text
from weir.text.stop import before

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
