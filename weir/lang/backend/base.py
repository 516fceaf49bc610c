"""The interface between programs and the backends that generate their text."""

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from weir.client.events import Logprob
from weir.errors import BadRequest


@dataclass(slots=True)
class Prompt:
    """Everything appended so far, as text and as the turns of a conversation.

    `turns` are the finished ones. The content of an open turn is `text` from `turn_start` on.
    """

    text: str
    turns: list[dict[str, Any]] = field(default_factory=list)  # role, content
    role: str | None = None  # of the open turn
    turn_start: int = 0
    images: list[str | bytes] = field(default_factory=list)
    program: str = ""  # id of the program, its branch after a slash

    @property
    def templated(self) -> bool:
        """Whether a chat template wrote the beginning, special tokens and all."""
        return bool(self.turns) or self.role is not None


@dataclass(slots=True)
class Piece:
    """A piece of streamed text, of choice `index`."""

    text: str
    index: int = 0
    finish_reason: str | None = None
    logprobs: list[Logprob] | None = None
    prompt_tokens: int = 0  # as far as it is known with this piece
    completion_tokens: int = 0
    cached_tokens: int = 0


@dataclass(slots=True)
class Score:
    """The tokens of one choice after a prompt, and the logprob of each."""

    tokens: list[int]
    logprobs: list[float]


@dataclass(slots=True)
class Turn:
    """The text around a turn's content."""

    before: str
    after: str


class Backend(Protocol):
    """Used only on the event loop of programs. Errors are `WeirError`s that say what to do."""

    chats: bool
    """Whether it reads turns and cannot go on with a text."""

    def shutdown(self) -> None:
        """Close the engine or the connections behind it; not to be called on the event loop."""
        ...

    def turn(self, roles: Sequence[str]) -> Turn:
        """The text around the last of a conversation's turns, given the roles of all."""
        ...

    def generate(self, prompt: Prompt, settings: dict[str, Any]) -> AsyncGenerator[Piece, None]:
        """Continue the prompt. settings: fields of `SamplingParams`."""
        ...

    async def score(self, prompt: Prompt, choices: Sequence[str]) -> list[Score]:
        """The logprobs of each choice after the prompt, which may be empty."""
        ...

    async def cache(self, prompt: Prompt) -> None:
        """A hint to cache the prompt, because several streams will continue it."""
        ...

    async def flush(self) -> None:
        """Drop what is cached."""
        ...


def healed(
    start: list[int], plain: list[int], whole: Sequence[list[int]]
) -> tuple[int, list[list[int]]]:
    """How to score choices whose first characters may merge with the prompt's last token (token
    healing). plain: tokens of the prompt. whole: tokens of the prompt with each choice. Returns the
    number of leading tokens that all share, and the sequences; the tokens after these are scored.
    If none is shared, `start` is put before all, because a first token has no logprob."""
    same = min(len(plain), *(len(ids) - 1 for ids in whole))
    while any(ids[:same] != plain[:same] for ids in whole):
        same -= 1
    return (same, [*whole]) if same else (len(start), [start + ids for ids in whole])


def first(names: Mapping[str, str]) -> str:
    """The text that marks the beginning of a text, given a tokenizer's special tokens by name."""
    return names.get("bos_token") or names.get("eos_token") or "\n"


def text_only(prompt: Prompt) -> None:
    """Raises BadRequest if the prompt has images."""
    if prompt.images or any(turn["images"] for turn in prompt.turns):
        raise BadRequest("this backend reads text only, no images")


def meta_of(pieces: list[Piece]) -> dict[str, Any]:
    """The meta info of one choice, from all its pieces."""
    logprobs = [entry for piece in pieces for entry in piece.logprobs or ()]
    return {
        "finish_reason": next((p.finish_reason for p in pieces if p.finish_reason), None),
        "prompt_tokens": max(piece.prompt_tokens for piece in pieces),
        "completion_tokens": max(piece.completion_tokens for piece in pieces),
        "cached_tokens": max(piece.cached_tokens for piece in pieces),
        "logprobs": logprobs or None,
    }
