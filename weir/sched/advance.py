"""What an iteration does to one request: it advances when planned and settles when committed."""

from weir.core import PENDING, Chunk, Delta, Matcher, Request, Result, Score
from weir.errors import GrammarError


def advance(r: Request, length: int, home: int) -> Chunk:
    """The chunk that computes `length` more tokens of `r`, which are computed from here on."""
    start, end = r.computed, r.computed + length
    final = end == len(r.tokens)
    samples = final and r.sampling.max_tokens > 0 and r.sampling.pool is None
    mask, late = _mask(r) if samples else (None, False)
    chunk = Chunk(
        uid=r.uid,
        start=start,
        ids=[] if r.sampled and final and length == 1 else r.tokens[start:end],
        pages=r.pages[r.sent :],
        home=home,
        sample=r.sampling if samples else None,
        prompt=r.prompt,
        history=r.tokens[:start] if r.sent == 0 and r.sampling.penalised else None,
        score=_score(r, start, end),
        pool=r.sampling.pool,
        final=final,
        mask=mask,
        late=late,
    )
    r.sent = len(r.pages)
    r.computed = end
    r.flying += 1
    if samples:
        r.sampled = True
        r.tokens.append(PENDING)
    return chunk


def decode(r: Request, home: int) -> Chunk:
    """`advance` by one token for what nearly all chunks are: all tokens of `r` are computed but the
    last, which the answer goes on from, and it has no new pages."""
    start = r.computed
    ids = [] if r.sampled else r.tokens[start:]
    mask, late = _mask(r)
    r.computed = start + 1
    r.flying += 1
    r.sampled = True
    r.tokens.append(PENDING)
    return Chunk(
        r.uid, start, ids, [], home, r.sampling, r.prompt, final=True, mask=mask, late=late
    )


def _mask(r: Request) -> tuple[bytes | None, bool]:
    """What may come after all tokens of `r`, and whether one of them must land first."""
    if r.matcher is None:
        return None, False
    known = r.settled == len(r.tokens)
    return r.matcher.mask() if known else None, not known


def settle(r: Request, chunk: Chunk, result: Result) -> Delta | None:
    """What `chunk`, which has landed, adds to `r`; None if nothing that anyone waits for."""
    uid = r.uid
    if r.void:
        r.void -= 1
        return None
    if uid in result.failed:
        r.done = "error"
        return Delta(uid, done=r.done, error=result.failed[uid], preempted=r.preempted)
    scores = result.scores.get(uid)
    if not (chunk.sample is not None or chunk.final or scores):
        return None
    delta = Delta(uid, scores=scores) if scores else Delta(uid)
    if r.told == r.prompt:
        delta.cached, delta.loaded, delta.started = r.cached, r.loaded, r.started
    if chunk.sample is not None:
        if uid in result.logprobs:
            delta.logprobs = [result.logprobs[uid]]
        token = result.tokens[uid]
        if r.matcher is not None and token not in r.sampling.stops:
            r.owed = token, delta
            return pay(r)
        _append(r, token)
    elif chunk.final:
        delta.vector = result.vectors.get(uid)
        r.done = "stop" if r.sampling.pool else "length"
    return _tell(r, delta)


def pay(r: Request, alone: bool = False) -> Delta | None:
    """Settle the token that was sampled last, once the matcher has said what stands in its place;
    None before. alone: nobody else waits for it."""
    assert r.owed is not None and r.matcher is not None
    token, delta = r.owed
    try:
        tokens = r.matcher.advance(token, alone)
        if tokens is None:
            return None
        _follow(r, r.matcher, token, tokens)
    except GrammarError as error:
        r.done, delta.error = "error", str(error)
    r.owed = None
    return _tell(r, delta)


def _tell(r: Request, delta: Delta) -> Delta:
    """With what was settled, and whether that was all."""
    delta.tokens = r.tokens[r.told : r.settled]
    r.told = r.settled
    if r.done is not None:
        delta.done, delta.preempted = r.done, r.preempted
    return delta


def _append(r: Request, token: int) -> None:
    """Settle a sampled token as it is."""
    sampling = r.sampling
    r.tokens[r.settled] = token
    r.settled += 1
    if token in sampling.stops:
        r.done = "stop"
    elif r.settled - r.prompt >= sampling.max_tokens:
        r.done = "length"


def _follow(r: Request, matcher: Matcher, token: int, tokens: list[int]) -> None:
    """Settle what stands in the place of a sampled token, up to where the answer ends."""
    stops, room = r.sampling.stops, r.prompt + r.sampling.max_tokens - r.settled
    r.jumped = tokens != [token]
    if not r.jumped:
        if r.settled == len(r.tokens):
            r.tokens.append(token)  # its place was taken back
        _append(r, token)
        r.done = "stop" if matcher.complete else r.done
        return
    recall(r, r.settled + (tokens[0] == token))
    if matcher.complete:
        r.done = "stop"
    stopped = next((at for at, one in enumerate(tokens[:room], 1) if one in stops), 0)
    if stopped:
        tokens, r.done = tokens[:stopped], "stop"
    elif len(tokens) > room:
        tokens, r.done = tokens[:room], "length"
    r.tokens[r.settled : r.settled + 1] = tokens
    r.settled += len(tokens)
    if r.done is None and len(tokens) >= room:
        r.done = "length"


def recall(r: Request, computed: int) -> None:
    """What flies of `r` will count for nothing, but that it computes the first `computed` tokens;
    neither does the token that the executor samples last."""
    del r.tokens[r.settled :]
    r.computed = min(r.computed, computed)
    r.void, r.sampled = r.flying, False


def _score(r: Request, start: int, end: int) -> Score | None:
    """Prompt logprobs that the chunk [start, end) can give and that were not given before."""
    top = r.sampling.prompt_logprobs
    if top is None:
        return None
    first = max(start, r.scored, r.sampling.score_from - 1)
    targets = r.tokens[first + 1 : min(end, r.prompt - 1) + 1]
    r.scored = max(r.scored, first + len(targets))
    return Score(first - start, targets, top) if targets else None
