"""Messages between the server process and the engine process: msgpack over ZeroMQ on loopback."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Struct

from weir.core import Delta, Sampling


class Boot(Struct):
    """What an engine process reads from its standard input: one line of JSON."""

    endpoint: str  # of its client's socket
    token: str  # a secret; the identities of its own sockets begin with it
    factory: str  # "module:function", called with `config`, makes the engine
    config: Any
    silence: float  # most seconds between two signs of life


class Submit(Struct, tag=True):
    uid: int
    tokens: list[int]
    sampling: Sampling
    arrival: float  # time.monotonic() of this machine
    priority: int = 0
    user: str = ""


class Abort(Struct, tag=True):
    uids: list[int]


class Flush(Struct, tag=True):
    """Drop every cached prefix that nobody is using."""


class Stop(Struct, tag=True):
    """Leave after the work in hand, or now."""


class Ready(Struct, tag=True):
    """First message of an engine process."""

    pages: int  # of the hottest tier
    page: int
    tokens: int
    requests: int
    context: int
    info: dict[str, Any]  # device, dtype, kernels, seconds of each start-up phase: for /server_info


class Stats(Struct, tag=True):
    """The engine as it is now, sent with deltas and at least once a second. Counters only grow."""

    step: int = 0
    running: int = 0
    waiting: int = 0
    pages_used: int = 0  # held by requests
    pages_cached: int = 0  # held by the tree alone
    pages_total: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    hit_tokens: int = 0  # prompt tokens found in the cache
    preemptions: int = 0
    recomputed_tokens: int = 0
    step_seconds: float = 0.0  # of the last step
    host_seconds: float = 0.0  # the scheduler's share of it
    step_tokens: int = 0
    step_requests: int = 0
    step_prefill: int = 0  # tokens of the last step that were prompt
    busy_since: float = 0.0  # monotonic time the step in hand began; 0: idle


class Deltas(Struct, tag=True):
    deltas: list[Delta]
    stats: Stats


class Fatal(Struct, tag=True):
    """The engine cannot go on; its process ends after this."""

    message: str


Up = Submit | Abort | Flush | Stop
Down = Ready | Deltas | Fatal

encode = msgspec.msgpack.Encoder().encode
decode_up = msgspec.msgpack.Decoder(Up).decode
decode_down = msgspec.msgpack.Decoder(Down).decode
