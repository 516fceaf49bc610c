"""Server-sent events: a value as one `data:` frame."""

from __future__ import annotations

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


def frame(value: Struct) -> bytes:
    return b"data: %b\n\n" % _encode(value)
