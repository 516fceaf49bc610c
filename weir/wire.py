"""Messages between the server process and the engine process: msgpack over ZeroMQ on loopback."""

from bisect import bisect_left
from typing import Any, ClassVar, Self

import msgspec
from msgspec import Struct, field

from weir.core import Delta, Grammar, Sampling


class Boot(Struct):
    """What an engine process reads from its standard input: one line of JSON."""

    endpoint: str  # the client's socket
    token: str  # a secret with which the identities of its sockets begin
    factory: str  # "module:function" that makes the engine from `config`
    config: Any
    silence: float  # most seconds between two heartbeats


class Logged(Struct):
    """A line of an engine process's standard error that begins with `RECORD`: for its client's log,
    which has a form, a level and a place to go."""

    logger: str
    level: int
    message: str


RECORD = b"\x1e"  # ASCII's record separator


class Submit(Struct, tag=True):
    uid: int
    tokens: list[int]
    sampling: Sampling
    arrival: float  # time.monotonic() of this machine
    priority: int = 0
    user: str = ""
    program: str = ""
    grammar: Grammar | None = None


class Lengths(Struct, tag=True):
    """Predicted tokens of answers, by uid. After an `error` no more will come."""

    tokens: dict[int, float] = {}
    error: str = ""


class Abort(Struct, tag=True):
    uids: list[int]


class Flush(Struct, tag=True):
    """Drop every cached prefix that no request uses."""


class Unpin(Struct, tag=True):
    """Unpin the prefix of this name."""

    name: str


class Stop(Struct, tag=True):
    """Exit after the work in hand, or now."""


class Ready(Struct, tag=True):
    """First message of an engine process."""

    context: int  # longest sequence
    info: dict[str, Any]  # device, dtype, kernels, seconds of each start-up phase: for /server_info


class Spread(Struct):
    """How values were distributed so far: `counts[i]` of them were at most `bounds[i]` and more
    than the bound before; the last count is of those above every bound."""

    bounds: ClassVar[tuple[float, ...]] = ()
    counts: list[int] = []
    sum: float = 0.0

    def __post_init__(self) -> None:
        self.counts = self.counts or [0] * (len(self.bounds) + 1)

    def add(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def __add__(self, other: Self) -> Self:
        both = [a + b for a, b in zip(self.counts, other.counts, strict=True)]
        return type(self)(both, self.sum + other.sum)


class Sizes(Spread):
    """For what a step holds: requests or tokens."""

    bounds: ClassVar[tuple[float, ...]] = (0.0, *(float(2**power) for power in range(16)))


class Seconds(Spread):
    """For how long a step takes."""

    bounds: ClassVar[tuple[float, ...]] = (
        *(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.015, 0.02, 0.03, 0.04, 0.05),
        *(0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.5, 10.0),
    )


class Counters(Struct):
    """An engine's counters. They only grow, also when one engine replaces another."""

    step: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    hit_tokens: int = 0  # prompt tokens found in the cache
    cpu_hit_tokens: int = 0  # of them, loaded from main memory to a GPU
    disk_hit_tokens: int = 0  # of them, loaded from a disk
    loaded_tokens: int = 0  # loaded from a colder tier
    saved_tokens: int = 0  # moved to a colder tier instead of dropped
    preemptions: int = 0
    recomputed_tokens: int = 0
    step_seconds: Seconds = field(default_factory=Seconds)  # device time
    predicted_seconds: Seconds = field(default_factory=Seconds)  # predicted, with a target
    host_seconds: Seconds = field(default_factory=Seconds)  # to plan a step and settle another
    step_requests: Sizes = field(default_factory=Sizes)
    step_tokens: Sizes = field(default_factory=Sizes)
    step_prefill: Sizes = field(default_factory=Sizes)  # prompt tokens among them
    step_decode: Sizes = field(default_factory=Sizes)  # the others


class Stats(Counters, tag=True):
    """The engine as it is now, sent with deltas and at least once a second."""

    running: int = 0
    waiting: int = 0
    pages_used: int = 0  # held by requests
    pages_cached: int = 0  # held by the tree alone
    pages_total: int = 0
    pages_pinned: int = 0  # of the tree, never evicted
    pages_cold: int = 0  # cached on tiers that attention cannot read
    target_seconds: float = 0.0  # target for a step; 0: none
    degraded: str = ""  # why requests are not ranked as configured; empty: they are
    busy_since: float = 0.0  # monotonic time the step in hand began; 0: idle


class Deltas(Struct, tag=True):
    deltas: list[Delta]
    stats: Stats


class Fatal(Struct, tag=True):
    """The engine cannot go on; its process ends after this."""

    message: str


Up = Submit | Lengths | Abort | Flush | Unpin | Stop
Down = Ready | Deltas | Fatal

encode = msgspec.msgpack.Encoder().encode
decode_up = msgspec.msgpack.Decoder(Up).decode
decode_down = msgspec.msgpack.Decoder(Down).decode
