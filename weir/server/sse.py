"""Server-sent events: a value as one `data:` frame."""

from typing import Any

import msgspec
from msgspec import Struct

START: dict[str, Any] = {
    "type": "http.response.start",
    "status": 200,
    "headers": [
        (b"content-type", b"text/event-stream; charset=utf-8"),
        (b"cache-control", b"no-cache"),
        (b"x-accel-buffering", b"no"),  # nginx must not hold frames back
    ],
}
DONE = b"data: [DONE]\n\n"

_encode = msgspec.json.Encoder().encode


def frame(value: Struct, event: str = "") -> bytes:
    """event: its name, where the API has names for them."""
    name = f"event: {event}\n".encode() if event else b""
    return b"%bdata: %b\n\n" % (name, _encode(value))
