"""The data every plane shares: requests, plans and results.

Plain values without tensors, clocks or policies. What crosses a process boundary is a msgspec
`Struct`; what stays inside one process is a slotted dataclass.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from enum import IntEnum
from itertools import chain
from typing import Any, Literal, NamedTuple, Protocol

from msgspec import Struct

PENDING = -1
"""Placeholder for a token that is scheduled to be sampled and not known yet."""


class Tier(IntEnum):
    """Where KV pages can live, hottest first. Down the radix tree, tiers only get colder."""

    GPU = 0
    CPU = 1
    DISK = 2


class Page(NamedTuple):
    tier: int
    index: int  # type: ignore[assignment]  # not tuple.index


class Move(NamedTuple):
    """Copy a page to a page of another tier."""

    src: Page
    dst: Page


class Sampling(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The validated sampling parameters of one request.

    The client always sets `seed`, so a request gives the same tokens whatever else is in the batch
    and however often it is preempted. `stops` are the token ids that end it.
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
    pin: str = ""  # keep its prompt cached under this name; empty: do not

    @property
    def penalised(self) -> bool:
        return (
            self.repetition_penalty != 1.0
            or self.presence_penalty != 0.0
            or self.frequency_penalty != 0.0
        )

    @property
    def uncached(self) -> int | None:
        """The first prompt position whose hidden state is needed; no cache hit may cover it."""
        if self.pool == "mean":
            return 0
        return max(0, self.score_from - 1) if self.prompt_logprobs is not None else None


class Thought(Struct, frozen=True):
    """The tokens that delimit the reasoning before an answer, which no grammar constrains."""

    end: int
    then: list[int]  # between the end of the reasoning and the answer
    begin: int | None = None  # optional for the model; None: the prompt has begun the reasoning


class Grammar(Struct, frozen=True):
    """A compiled grammar that an answer must follow. key: equal for equal grammars."""

    key: str
    kind: Literal["automaton", "guidance"]
    data: bytes  # an encoded automaton, or a grammar in llguidance's words
    thought: Thought | None = None


class TokenLogprobs(Struct, frozen=True, array_like=True):
    token: int
    logprob: float
    rank: int  # 1: the most likely
    top: list[tuple[int, float]]  # most likely first


class Matcher(Protocol):
    """The state of one request's answer in its grammar."""

    def begin(self) -> list[int]:
        """The tokens with which every answer begins. They are not sampled."""
        ...

    def mask(self, alone: bool = False) -> bytes | None:
        """The allowed next tokens, one bit each; None if not known yet: ask again. alone: no other
        request waits, so it may take its time."""
        ...

    def advance(self, token: int, alone: bool = False) -> list[int] | None:
        """Accept a token that `mask` allowed. Returns the tokens that replace it: itself and
        whatever must follow. The same text may be tokenized differently then. None if not known
        yet: ask again with the same token.

        Raises `GrammarError` if the answer cannot go on."""
        ...

    @property
    def complete(self) -> bool:
        """Whether the answer has ended and nothing may be added."""
        ...


@dataclass(slots=True, eq=False)
class Request:
    """One sequence from arrival to its last token. It has no phase other than `todo`."""

    uid: int
    tokens: list[int]
    sampling: Sampling
    arrival: float
    priority: int = 0  # smaller goes first
    user: str = ""
    program: str = ""  # the program of many calls to which this request belongs
    grammar: Grammar | None = None
    matcher: Matcher | None = None  # the grammar opened for this request
    prompt: int = 0  # len(tokens) at arrival
    computed: int = 0  # tokens whose KV exists once every flying plan has landed
    settled: int = 0  # tokens whose value is known
    told: int = 0  # tokens reported in deltas
    flying: int = 0  # plans in flight that carry this request
    void: int = 0  # of these, from the oldest on, how many have results to discard
    pages: list[Page] = field(default_factory=list)
    lease: Any = None  # deepest locked node, opaque outside kv; None: holds nothing
    shared: int = 0  # leading pages that belong to the tree
    sent: int = -1  # leading pages the executor knows; -1: not even the request
    sampled: bool = False  # the executor sampled its last token and still has it
    owed: tuple[int, Delta] | None = None  # a sampled token the matcher has yet to replace
    jumped: bool = False  # the last token was replaced by several, so the next may be too
    scored: int = 0  # prompt positions whose logprob has been asked for
    peak: int = 0  # most tokens ever computed: those beyond `computed` are recomputed
    cached: int = 0  # prompt tokens found in the cache
    loaded: dict[int, int] = field(default_factory=dict)  # tier → cached tokens loaded from it
    done: str | None = None  # "stop", "length", "abort", "error"
    started: float = -1.0  # first admission
    last: int = -1  # step of the latest plan that has it
    preempted: int = 0
    score: float | None = None  # predicted tokens of the answer; None: not predicted yet

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
    """The work at hand as an iteration begins."""

    decodes: int = 0
    context: int = 0  # KV tokens that all decodes read together
    backlog: int = 0  # prompt tokens to compute, those of waiting requests included
    waited: float = 0.0  # seconds the earliest arrival among the next has waited for a token


IDLE = Load()


class Score(Struct, frozen=True, array_like=True):
    """Prompt logprobs wanted from a chunk: for `len(targets)` hidden states from row `offset` on,
    the logprob of the target (the token that follows) and of the `top` most likely tokens."""

    offset: int
    targets: list[int]
    top: int


class Chunk(Struct, frozen=True):
    """One request's share of one iteration."""

    uid: int
    start: int  # first position to compute
    ids: list[int]  # tokens from start; empty: the token the executor sampled for it last
    pages: list[Page]  # new since its previous chunk; in its first chunk all pages
    home: int  # tier where new KV is written
    sample: Sampling | None = None  # None: sample nothing after this chunk
    prompt: int = 0  # prompt length
    history: list[int] | None = None  # first chunk of a penalised request: tokens before `start`
    score: Score | None = None
    pool: str | None = None
    final: bool = False  # ends at the last token known so far
    mask: bytes | None = None  # allowed tokens, one bit each
    late: bool = False  # its mask depends on a token in flight and follows with `Executor.choose`
    first: int = 0  # how many pages of the request stay; `pages` follow them and replace the rest

    @property
    def length(self) -> int:
        return len(self.ids) or 1


class Segment(Struct, frozen=True):
    """Layers `begin` to `end` of a forward pass of decodes that is spread over several plans.

    The first plan brings the pages and ids, the last one samples. In between the pages that the
    decodes attend to must not change."""

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
    """One iteration as plain data. Executors run it, the simulator prices it, tests assert on it.

    The executor applies `forget`, then `moves`, then the lanes. Plans run in the order submitted,
    and within a layer a lane writes its KV before it reads any. A chunk may therefore attend to
    pages written in this plan by a chunk of the same lane or of an earlier one.
    """

    step: int
    moves: list[Move]
    lanes: list[list[Chunk]]
    forget: list[int]  # uids whose page tables the executor drops
    segment: Segment | None = None  # beside the lanes

    @property
    def chunks(self) -> list[Chunk]:
        """The chunks that are done when this plan is."""
        segment = self.segment
        done = segment.chunks if segment is not None and segment.last else []
        return [*chain.from_iterable(self.lanes), *done]

    @property
    def tokens(self) -> int:
        return sum(c.length for c in self.chunks)

    @property
    def late(self) -> bool:
        """Whether some tokens can be chosen only once `Executor.choose` brings their masks."""
        return any(c.late for c in self.chunks)


class Result(Struct):
    """What one plan produced, by uid."""

    tokens: dict[int, int]
    logprobs: dict[int, TokenLogprobs] = {}
    scores: dict[int, list[TokenLogprobs]] = {}
    vectors: dict[int, list[float]] = {}
    failed: dict[int, str] = {}  # requests that could not be computed, and why
    seconds: float = 0.0  # time the device spent on the plan
    host: float = 0.0  # seconds of host attention since the plan before; 0: not known


class Delta(Struct, omit_defaults=True):
    """What one step adds to one request. The last Delta of a request, and no other, has `done`."""

    uid: int
    tokens: list[int] = []
    logprobs: list[TokenLogprobs] = []
    scores: list[TokenLogprobs] = []
    vector: list[float] | None = None
    done: str | None = None
    error: str = ""
    refused: bool = False  # the error is the request's own
    # In the first delta of a request:
    cached: int = -1  # prompt tokens found in the cache
    loaded: dict[int, int] = {}  # tier → cached tokens loaded from it
    started: float = -1.0  # first admission, engine clock
    # In the last:
    preempted: int = 0


class Capacity(Struct, frozen=True):
    """The limits of an executor, known once the model is loaded."""

    page: int  # tokens per page
    pages: dict[int, int]  # tier → pages
    tokens: int  # per plan
    requests: int  # per plan
    context: int  # longest sequence, in tokens
    loads: dict[int, int] = {}  # tier → most pages a plan may load from it; absent: no limit
    lane: int = sys.maxsize  # tokens per lane
