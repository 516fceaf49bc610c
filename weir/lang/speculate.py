"""API speculation: one call to a service serves several `gen`s (SGLang, section 5).

A service that bills its input tokens is asked once to write beyond the end of the first `gen`. The
rest is kept, and used as long as the program appends the same text.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from weir.errors import BadRequest
from weir.lang import ir
from weir.lang.backend.base import Backend, Piece, Prompt, meta_of
from weir.lang.stream import Answer, Item, Stream

OWN = frozenset(("n", "logprobs", "regex", "json_schema"))
"""A `gen` with one of these settings has a call of its own, which serves no other `gen`."""
TRIES = 3
"""Calls for a whole turn before the program fails because no answer had its form."""


class Speculating(Stream):
    """A stream that asks for `tokens` in one call."""

    def __init__(
        self, backend: Backend, defaults: dict[str, Any], tokens: int, waits: bool = False
    ):
        super().__init__(backend, defaults, waits)
        self._tokens = tokens

    def branch(self) -> Stream:
        return type(self)(self.backend, self.defaults, self._tokens, waits=True)


class Ahead(Speculating):
    """A completion service's stream: text written beyond a `gen` is kept for the next ones."""

    _held: tuple[str, str | None] = "", None
    """The program's text with what the service wrote after it, and why the service ended."""

    async def _written(
        self, prompt: Prompt, settings: dict[str, Any]
    ) -> AsyncGenerator[Piece, None]:
        if OWN.isdisjoint(settings):
            found = self._beyond(prompt, stops(settings))
            if found is not None:
                yield Piece(found, finish_reason="stop")
                return
            if stops(settings) and (piece := await self._ahead(prompt, settings)) is not None:
                yield piece
                return
        # it has no stop string: only its limit ends it, and only the service can count tokens
        async for piece in self.backend.generate(prompt, settings):
            yield piece

    def _beyond(self, prompt: Prompt, ends: Sequence[str]) -> str | None:
        """The kept text after the prompt, up to an end; None if it does not fit this `gen`."""
        text, reason = self._held
        if not text.startswith(prompt.text) or len(text) == len(prompt.text):
            return None
        held = text[len(prompt.text) :]
        found = cut(held, ends)  # without an end: all of it, if the model ended by itself
        return held if found is None and reason == "stop" else found

    async def _ahead(self, prompt: Prompt, settings: dict[str, Any]) -> Piece | None:
        """Ask for more than a `gen` needs. None if its stop string did not come, so that its own
        limit may have ended it first."""
        own = settings.get("max_tokens")
        longer = {name: value for name, value in settings.items() if name != "stop"}
        longer["max_tokens"] = max(self._tokens, own or 0)
        pieces = [piece async for piece in self.backend.generate(prompt, longer)]
        if not pieces:
            return None
        text, meta = "".join(p.text for p in pieces), meta_of(pieces)
        self._held = prompt.text + text, meta["finish_reason"]
        found = cut(text, stops(settings))
        if found is not None:
            return replace(pieces[-1], text=found, finish_reason="stop")
        whole = replace(pieces[-1], text=text, finish_reason=meta["finish_reason"])
        return whole if longer["max_tokens"] == own else None


@dataclass(slots=True, eq=False)
class Need(ir.Node):
    """The program reads a value of the open turn before the turn has ended."""


class Forms(Speculating):
    """A chat service's stream. An assistant's turn is requested as a whole, when it ends or one of
    its values is read. Its `gen`s are found in the answer by the text between them."""

    def __init__(self, *arguments: Any, **named: Any):
        super().__init__(*arguments, **named)
        self._form: list[Item] = []  # text and gens of the open turn that are not requested yet

    def need(self) -> None:
        self.push(Need())

    async def _do(self, item: Item) -> None:
        collects = self.prompt.role == "assistant" and isinstance(item.node, ir.Text | ir.Gen)
        if collects:
            self._form.append(replace(item))
            item.fill = {}
            return
        if self._form:
            form, self._form = self._form, []
            try:
                await self._ask(form)
            except Exception as error:
                self._fail(form[0].line, error)
                self._settle(form)
                return
        if not isinstance(item.node, Need):
            await super()._do(item)

    async def _ask(self, form: list[Item]) -> None:
        parts = [self._part(item.node) for item in form]
        blanks = [item for item in form if isinstance(item.node, ir.Gen)]
        if not blanks:
            self._say("".join(part for part in parts if isinstance(part, str)))
            return
        settings = self._settings(blanks, parts)
        values, meta = None, {}
        for _ in range(TRIES):
            pieces = [p async for p in self.backend.generate(replace(self.prompt), settings)]
            values, meta = match(parts, "".join(p.text for p in pieces)), meta_of(pieces)
            if values is not None:
                break
        if values is None:
            raise BadRequest(f"{TRIES} answers did not have the form of this turn: say it in it")
        left = iter(values)
        for item, part in zip(form, parts, strict=True):
            text = part if isinstance(part, str) else next(left)
            name = item.node.name if isinstance(item.node, ir.Gen) else None
            self._say(text, name)
            if name is not None:
                item.fill[name].set_result(Answer(text, meta))

    def _part(self, node: ir.Node) -> str | Blank:
        return node.value if isinstance(node, ir.Text) else Blank(self._stops(node))

    def _stops(self, node: ir.Node) -> list[str]:
        assert isinstance(node, ir.Gen)
        return stops(self.defaults | node.settings)

    def _settings(self, blanks: list[Item], parts: list[str | Blank]) -> dict[str, Any]:
        """The settings of the call: those of the blanks, which may differ only in stop strings and
        limits. Raises BadRequest."""
        nodes = [item.node for item in blanks if isinstance(item.node, ir.Gen)]
        each: list[dict[str, Any]] = [self.defaults | node.settings for node in nodes]
        limits = [settings.pop("max_tokens", 0) for settings in each]
        for settings in each:
            settings.pop("stop", None)
        if any(settings != each[0] for settings in each):
            raise BadRequest("the gens of a speculated turn must have the same settings")
        if "n" in each[0] or any(node.thought for node in nodes):
            raise BadRequest("a speculated turn of a chat service has no n and no thoughts")
        if len(parts) == 1:
            return self.defaults | nodes[0].settings
        return each[0] | {"max_tokens": max(self._tokens, sum(limits))}


@dataclass(slots=True)
class Blank:
    """A part of a turn that the model writes: up to the first of `stops`."""

    stops: list[str]


def match(form: Sequence[str | Blank], text: str) -> list[str] | None:
    """The blanks' values if `text` has the form, else None.

    The form's text must occur in its place. A blank ends at its stop, where the text after it
    begins or, if it is the last part, with the text. Leading blanks and further text are ignored.
    """
    values, text = [], text.lstrip()
    for at, part in enumerate(form):
        if isinstance(part, str):
            part = part if at else part.lstrip()
            if not text.startswith(part):
                return None
            text = text[len(part) :]
            continue
        following = form[at + 1] if at + 1 < len(form) else None
        ends = [*part.stops, *([following] if isinstance(following, str) else [])]
        value = cut(text, ends)
        if value is None:
            if following is not None:
                return None
            value = text
        values.append(value)
        text = text[len(value) :]
    return values


def stops(settings: dict[str, Any]) -> list[str]:
    found = settings.get("stop") or []
    return [found] if isinstance(found, str) else list(found)


def cut(text: str, ends: Sequence[str]) -> str | None:
    """`text` up to the first of `ends` in it; None if there is none."""
    found = [at for at in (text.find(end) for end in ends) if at >= 0]
    return text[: min(found)] if found else None
