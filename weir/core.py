"""The data every plane shares: requests, plans, results. Plain values; the only logic here counts.

This module knows no tensor, no clock and no policy. What crosses a process boundary is a msgspec
`Struct`; what lives inside one process is a slotted dataclass.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from enum import IntEnum
from itertools import chain
from typing import Any, Literal, NamedTuple, Protocol

from msgspec import Struct

PENDING = -1
"""A token that has been scheduled to be sampled but whose value is not known yet."""


class Tier(IntEnum):
    """A place KV pages can live, hottest first. Down the radix tree, tiers only get colder."""

    GPU = 0
    CPU = 1
    DISK = 2


class Page(NamedTuple):
    tier: int
    index: int  # type: ignore[assignment]  # not tuple.index


class Move(NamedTuple):
    """What a page holds goes to a page of another tier."""

    src: Page
    dst: Page


class Sampling(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What the engine must know to choose the tokens of one request. Already validated.

    `seed` is always set (the client draws one), so a request gives the same tokens whatever else is
    in the batch and however often it is preempted. `stops` are the token ids that end it.
    """

    temperature: float = 1.0  # 0: greedy
    top_k: int = 0  # 0: off
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0  # over prompt and output
    presence_penalty: float = 0.0  # over output
    frequency_penalty: float = 0.0  # over output
    logit_bias: dict[int, float] = {}
    allowed: list[int] | None = None  # None: every token
    seed: int = 0
    max_tokens: int = 16  # 0: compute the prompt only
    min_tokens: int = 0
    stops: list[int] = []
    logprobs: int | None = None  # None: none; n: the chosen token's and the n most likely
    prompt_logprobs: int | None = None
    score_from: int = 0  # first prompt position whose logprob is wanted
    pool: str | None = None  # "mean" or "last": return a hidden vector, sample nothing
    pin: str = ""  # the name under which its prompt stays cached; empty: it need not

    @property
    def penalised(self) -> bool:
        return (
            self.repetition_penalty != 1.0
            or self.presence_penalty != 0.0
            or self.frequency_penalty != 0.0
        )

    @property
    def uncached(self) -> int | None:
        """First prompt position whose hidden state is needed, so no cache hit may reach past it."""
        if self.pool == "mean":
            return 0
        return max(0, self.score_from - 1) if self.prompt_logprobs is not None else None


class Thought(Struct, frozen=True):
    """What may be thought before an answer follows its grammar, in token ids."""

    end: int  # ends it
    then: list[int]  # come between it and the answer
    begin: int | None = None  # begins it, if the model likes; None: the prompt has begun it


class Grammar(Struct, frozen=True):
    """What an answer must follow, compiled. key: equal for equal grammars."""

    key: str
    kind: Literal["automaton", "guidance"]
    data: bytes  # an encoded automaton, or a grammar in llguidance's words
    thought: Thought | None = None  # of this answer


class TokenLogprobs(Struct, frozen=True, array_like=True):
    token: int
    logprob: float
    rank: int  # 1: the most likely
    top: list[tuple[int, float]]  # most likely first


class Matcher(Protocol):
    """The grammar that one request's answer follows, and how far it has come."""

    def begin(self) -> list[int]:
        """The tokens that every answer begins with: taken as given."""
        ...

    def mask(self, alone: bool = False) -> bytes | None:
        """The tokens that may come next, one bit each; None: not known yet, ask again. alone:
        nobody else waits for it."""
        ...

    def advance(self, token: int, alone: bool = False) -> list[int] | None:
        """Take a token in that `mask` allowed. Returns what stands in its place: the token, and
        whatever must follow it; tokens may be cut otherwise then, but say the same. None: not known
        yet, ask again with the same token.

        Raises `GrammarError` if the answer cannot go on."""
        ...

    @property
    def complete(self) -> bool:
        """Whether the answer has ended: nothing may be added."""
        ...


@dataclass(slots=True, eq=False)
class Request:
    """One sequence from arrival to the last token. Its phase is `todo`, nothing else."""

    uid: int
    tokens: list[int]
    sampling: Sampling
    arrival: float
    priority: int = 0  # smaller goes first
    user: str = ""
    program: str = ""  # of many calls, that this is one of
    grammar: Grammar | None = None
    matcher: Matcher | None = None  # the grammar opened for this request
    prompt: int = 0  # len(tokens) at arrival
    computed: int = 0  # tokens whose KV exists once every flying plan has landed
    settled: int = 0  # tokens whose value is known
    told: int = 0  # tokens whose value deltas have told
    flying: int = 0  # plans that carry this request and have not landed
    void: int = 0  # of them, from the oldest on, how many bring nothing that counts
    pages: list[Page] = field(default_factory=list)
    lease: Any = None  # deepest locked node, opaque outside kv; None: holds nothing
    shared: int = 0  # leading pages that belong to the tree
    sent: int = 0  # leading pages the executor has been told of
    sampled: bool = False  # the executor sampled its last token and still has it
    owed: tuple[int, Delta] | None = None  # a sampled token whose place the matcher has yet to fill
    jumped: bool = False  # more than that followed the token before it, so it may again
    scored: int = 0  # prompt positions whose logprob has been asked for
    peak: int = 0  # tokens ever computed: what a preemption makes it compute again
    cached: int = 0  # prompt tokens found in the cache
    loaded: dict[int, int] = field(default_factory=dict)  # tier → of them, brought from there
    done: str | None = None  # "stop", "length", "abort", "error"
    started: float = -1.0  # first admission
    last: int = -1  # step of the latest plan that has it
    preempted: int = 0
    score: float | None = None  # expected tokens of the answer; None: nobody has said yet

    def __post_init__(self) -> None:
        self.prompt = self.settled = self.told = len(self.tokens)

    @property
    def todo(self) -> int:
        return len(self.tokens) - self.computed

    @property
    def running(self) -> bool:
        return self.lease is not None

    @property
    def decoding(self) -> bool:
        return self.lease is not None and len(self.tokens) - self.computed == 1


class Load(NamedTuple):
    """What there is to do as an iteration begins."""

    decodes: int = 0
    context: int = 0  # tokens of KV that the decodes read between them
    backlog: int = 0  # prompt tokens yet to be computed, of those that wait, too
    waited: float = 0.0  # seconds, for its first token, of who came first of those that go next


IDLE = Load()


class Score(Struct, frozen=True, array_like=True):
    """Prompt logprobs wanted from a chunk: for its last `len(targets)` hidden states in order,
    the logprob of each target token (the token that follows) and of the `top` most likely."""

    offset: int  # first row of the chunk that is scored
    targets: list[int]
    top: int


class Chunk(Struct, frozen=True):
    """One request's share of one iteration."""

    uid: int
    start: int  # first position to compute
    ids: list[int]  # tokens from start; empty: the token you sampled for it last
    pages: list[Page]  # pages new since its last chunk; all of them in its first one
    home: int  # tier where new KV is written
    sample: Sampling | None = None  # None: sample nothing after this chunk
    prompt: int = 0  # prompt length: what follows it is output
    history: list[int] | None = None  # first chunk of a penalised request: tokens before `start`
    score: Score | None = None
    pool: str | None = None
    final: bool = False  # ends the known tokens (a pooled request's last chunk)
    mask: bytes | None = None  # allowed tokens, one bit each
    late: bool = False  # its mask depends on a token in flight: it comes after the plan

    @property
    def length(self) -> int:
        return len(self.ids) or 1


class Segment(Struct, frozen=True):
    """The layers from `begin` to `end` of a forward pass that takes several plans, of decodes.

    The first plan brings their pages and ids, the last one samples. In between nobody may touch
    what they attend to."""

    chunks: list[Chunk]
    begin: int
    end: int
    layers: int  # of the model

    @property
    def share(self) -> float:
        return (self.end - self.begin) / self.layers

    @property
    def last(self) -> bool:
        return self.end == self.layers


class Plan(Struct, frozen=True):
    """One iteration as plain data: what ranks receive, the simulator prices, a test asserts.

    The executor applies `forget`, then `moves`, then the lanes. Plans run in the order submitted,
    and within a layer a lane's KV is written before its attention reads: a chunk may therefore
    attend to pages that another chunk of the same lane, or of an earlier one, is just writing.
    """

    step: int
    moves: list[Move]
    lanes: list[list[Chunk]]
    forget: list[int]  # uids whose tables the executor drops
    segment: Segment | None = None  # beside the lanes

    @property
    def chunks(self) -> list[Chunk]:
        """Those that are done when this plan is."""
        segment = self.segment
        done = segment.chunks if segment is not None and segment.last else []
        return [*chain.from_iterable(self.lanes), *done]

    @property
    def tokens(self) -> int:
        return sum(c.length for c in self.chunks)

    @property
    def late(self) -> bool:
        """Whether tokens can be chosen only when masks have come."""
        return any(c.late for c in self.chunks)


class Result(Struct):
    """What one plan produced, by uid."""

    tokens: dict[int, int]
    logprobs: dict[int, TokenLogprobs] = {}
    scores: dict[int, list[TokenLogprobs]] = {}
    vectors: dict[int, list[float]] = {}
    failed: dict[int, str] = {}  # this request alone could not be computed, and why
    seconds: float = 0.0  # time the device spent on the plan
    host: float = 0.0  # time that the host's cores attended since the plan before; 0: not known


class Delta(Struct, omit_defaults=True):
    """What one step adds to one request. Exactly one Delta of a request, its last, has `done`."""

    uid: int
    tokens: list[int] = []
    logprobs: list[TokenLogprobs] = []
    scores: list[TokenLogprobs] = []
    vector: list[float] | None = None
    done: str | None = None
    error: str = ""
    refused: bool = False  # with an error: it is of the request, which never ran
    cached: int = -1  # with the first delta: prompt tokens found in the cache
    loaded: dict[int, int] = {}  # with it: tier → of them, brought from there
    started: float = -1.0  # with the first delta: when it was first admitted, engine clock
    preempted: int = 0  # with the last delta


class Capacity(Struct, frozen=True):
    """What an executor can hold, known after loading."""

    page: int  # tokens a page
    pages: dict[int, int]  # tier → pages
    tokens: int  # tokens in one plan
    requests: int  # requests in one plan
    context: int  # longest sequence
    loads: dict[int, int] = {}  # tier → most pages that one plan may bring from there; else any
    lane: int = sys.maxsize  # tokens of one lane
