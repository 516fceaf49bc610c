"""What models behind third-party services have in common: no hints, and turns in plain text."""

import base64
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from weir.errors import BadRequest
from weir.lang.backend.base import Prompt, Score, Turn
from weir.lang.backend.service import Service

KINDS = {b"\x89PNG": "png", b"GIF8": "gif", b"WEBP": "webp"}
"""Marks in an image's first bytes → its type; others count as JPEG."""


class Hosted:
    """model: the service's name of the model."""

    chats = True

    def __init__(self, service: Service, model: str):
        self.service = service
        self.model = model

    def shutdown(self) -> None:
        """Close the connections to the service."""
        self.service.close()

    def turn(self, roles: Sequence[str]) -> Turn:
        return Turn(f"{roles[-1].upper()}: ", "\n")

    async def score(self, prompt: Prompt, choices: Sequence[str]) -> list[Score]:
        raise BadRequest("select needs logprobs of the prompt, which a chat service does not give")

    async def cache(self, prompt: Prompt) -> None:
        """Does nothing: a hint would be a call that costs money."""

    async def flush(self) -> None:
        raise BadRequest("this service's cache cannot be flushed")


def open_turn(prompt: Prompt) -> str:
    """The assistant's open turn so far. Raises BadRequest in any other turn."""
    if prompt.role != "assistant":
        raise BadRequest("a chat service writes the assistant's turns only: use weir.assistant")
    return prompt.text[prompt.turn_start :]


def message(turn: dict[str, Any], picture: Callable[[str], dict[str, Any]]) -> dict[str, Any]:
    """A turn in the service's format. picture: makes the part for an image, given its URL."""
    if not turn["images"]:
        return {"role": turn["role"], "content": turn["content"]}
    images = [picture(image_url(image)) for image in turn["images"]]
    return {"role": turn["role"], "content": [{"type": "text", "text": turn["content"]}, *images]}


def image_url(image: str | bytes) -> str:
    """A URL unchanged; a file or bytes as a data URL."""
    if isinstance(image, str) and image.startswith(("http://", "https://", "data:")):
        return image
    content = image if isinstance(image, bytes) else Path(image).read_bytes()
    kind = next((kind for mark, kind in KINDS.items() if mark in content[:12]), "jpeg")
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
