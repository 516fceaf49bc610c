"""An executor that runs plans on page contents made of hashes, and checks every one of them.

For each position it stores the hash of the tokens up to there, so a chunk that reads a page of
another prefix, a page given away too early or a move in the wrong order fails at once. The token it
samples is a function of the prefix alone: outputs must not depend on any policy.
"""

from collections import Counter

from msgspec import structs

from weir.core import Capacity, Chunk, Page, Plan, Result, Segment


def mix(state: int, token: int) -> int:
    return (state * 6364136223846793005 + token * 1442695040888963407 + 1) % (1 << 61)


def sample(state: int, vocab: int) -> int:
    return 1 + (state >> 17) % (vocab - 1)


class ShadowHandle:
    def __init__(self, result: Result):
        self._result = result

    def result(self) -> Result:
        return self._result


class Shadow:
    def __init__(self, capacity: Capacity, *, depth: int = 1, chains: bool = True, vocab: int = 50):
        self.capacity, self.depth, self.chains, self.vocab = capacity, depth, chains, vocab
        self.content: dict[Page, list[int]] = {}
        self.tables: dict[int, list[Page]] = {}
        self.states: dict[int, int] = {}  # hash of all tokens computed
        self.last: dict[int, int] = {}
        self.drawn: dict[tuple[int, int], int] = {}  # (uid, position) → token
        self.requests: dict[int, list[int]] = {}  # uid → its tokens, as the scheduler knows them
        self.plans: list[Plan] = []
        self.passing: list[Chunk] = []  # those that take several plans
        self.done = 0  # layers they have gone through
        self.chosen = -1  # the last step whose masks have come

    def submit(self, plan: Plan) -> ShadowHandle:
        self.plans.append(plan)
        assert plan.tokens <= self.capacity.tokens
        assert len(plan.chunks) <= self.capacity.requests
        for uid in plan.forget:
            assert uid not in {chunk.uid for chunk in self.passing}
            self.tables.pop(uid, None), self.last.pop(uid, None)
        loaded = Counter(src.tier for src, dst in plan.moves if src.tier > dst.tier)
        for tier, most in self.capacity.loads.items():
            assert loaded[tier] <= most, "more is loaded than one plan may"
        for src, dst in plan.moves:
            self.content[Page(*dst)] = list(self.content[Page(*src)])
        tokens = {}
        for lane in plan.lanes:
            assert len({chunk.uid for chunk in lane}) == len(lane)
            assert sum(chunk.length for chunk in lane) <= self.capacity.lane
            for chunk in lane:
                self._sample(chunk, self._run(chunk), tokens)
        if plan.segment is not None:
            self._pass(plan.segment, tokens)
        return ShadowHandle(Result(tokens))

    def _sample(self, chunk: Chunk, state: int, tokens: dict[int, int]) -> None:
        if chunk.sample is not None:
            token = tokens[chunk.uid] = self.last[chunk.uid] = sample(state, self.vocab)
            self.drawn[chunk.uid, chunk.start + chunk.length] = token

    def _pass(self, segment: Segment, tokens: dict[int, int]) -> None:
        """Whoever takes several plans finds in each of them what it found in the first."""
        assert self.done == segment.begin < segment.end <= segment.layers
        if not segment.begin:
            assert not self.passing
            self.passing = segment.chunks
        assert self.passing == segment.chunks and segment.share < 1
        states = [
            self._run(chunk if not segment.begin else structs.replace(chunk, pages=[]))
            for chunk in segment.chunks
        ]
        self.done = segment.end
        if segment.last:
            self.passing, self.done = [], 0
            for chunk, state in zip(segment.chunks, states, strict=True):
                self._sample(chunk, state, tokens)

    def choose(self, masks: dict[int, bytes]) -> None:
        """Tokens are what they are, whatever a mask says; but it must come."""
        late = next(plan for plan in self.plans if plan.late and plan.step > self.chosen)
        assert masks.keys() <= {chunk.uid for chunk in late.chunks if chunk.late}
        self.chosen = late.step

    def _run(self, chunk: Chunk) -> int:
        page = self.capacity.page
        table = self.tables.setdefault(chunk.uid, [])
        if chunk.pages:
            table[chunk.first :] = [Page(*p) for p in chunk.pages]
        ids = chunk.ids or [self.last[chunk.uid]]
        state = 0
        if chunk.start:
            where = table[(chunk.start - 1) // page]
            state = self.content[where][(chunk.start - 1) % page]
        self._check_prefix(chunk, table, state)
        for position, token in enumerate(ids, chunk.start):
            state = mix(state, token)
            where = table[position // page]
            self.content.setdefault(where, [0] * page)[position % page] = state
        if chunk.history is not None:
            assert len(chunk.history) == chunk.start
        return state

    def _check_prefix(self, chunk: Chunk, table: list[Page], state: int) -> None:
        """The hashes up to `start` must be one unbroken chain of this uid's tokens."""
        tokens = self.requests[chunk.uid]
        expected = 0
        for position in range(chunk.start):
            token = tokens[position]
            expected = mix(expected, self.drawn[chunk.uid, position] if token < 0 else token)
            where = table[position // self.capacity.page]
            got = self.content[where][position % self.capacity.page]
            assert got == expected, f"uid {chunk.uid} reads a foreign page at {position}"
        assert state == expected

    def close(self) -> None:
        pass


def expected(prompt: list[int], count: int, vocab: int = 50) -> list[int]:
    """What a request must produce, whatever the policy."""
    state, out = 0, []
    for token in prompt:
        state = mix(state, token)
    for _ in range(count):
        out.append(sample(state, vocab))
        state = mix(state, out[-1])
    return out
