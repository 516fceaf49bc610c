"""How one request advances when it is planned and settles when the plan is committed."""

from weir.core import PENDING, Chunk, Delta, Matcher, Request, Result, Score
from weir.errors import GrammarError

STUCK = (
    "allowed_token_ids, min_tokens and structured output together leave no token to choose: leave "
    "one of them out"
)


def advance(r: Request, length: int, home: int) -> Chunk:
    """The chunk that computes `length` more tokens of `r`; they count as computed from now on."""
    start, end, told = r.computed, r.computed + length, max(0, r.sent)
    final = end == len(r.tokens)
    samples = final and r.sampling.max_tokens > 0 and r.sampling.pool is None
    mask, late = _mask(r) if samples else (None, False)
    chunk = Chunk(
        uid=r.uid,
        start=start,
        ids=[] if r.sampled and final and length == 1 else r.tokens[start:end],
        pages=r.pages[told:],
        home=home,
        sample=r.sampling if samples else None,
        prompt=r.prompt,
        history=r.tokens[:start] if r.sent < 0 and r.sampling.penalised else None,
        score=_score(r, start, end),
        pool=r.sampling.pool,
        final=final,
        mask=mask,
        late=late,
        first=told if told < len(r.pages) else 0,
    )
    r.sent = len(r.pages)
    r.computed = end
    r.flying += 1
    if samples:
        r.sampled = True
        r.tokens.append(PENDING)
    return chunk


def decode(r: Request, home: int) -> Chunk:
    """`advance` by one token, made fast for what nearly all chunks are: a decode without new pages.
    All tokens of `r` but the last are computed."""
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
    """The mask of the token after all tokens of `r`, and whether it must wait for a plan to
    land."""
    if r.matcher is None:
        return None, False
    known = r.settled == len(r.tokens)
    return r.matcher.mask() if known else None, not known


def settle(r: Request, chunk: Chunk, result: Result) -> Delta | None:
    """Settle a chunk that has landed; the delta it adds to `r`, None if there is nothing to
    tell."""
    uid = r.uid
    if r.void:
        r.void -= 1
        return None
    if uid in result.failed:
        r.done = "error"
        delta = Delta(uid, done=r.done, error=result.failed[uid], preempted=r.preempted)
        if chunk.sample is not None and _stuck(r):
            delta.error, delta.refused = STUCK, True
        return delta
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


def _stuck(r: Request) -> bool:
    """Whether the request itself excludes every token that could come next."""
    left = None if r.sampling.allowed is None else set(r.sampling.allowed)
    mask = r.matcher.mask(alone=True) if r.matcher is not None else None
    if mask is not None:
        fit = {token for token in range(8 * len(mask)) if mask[token // 8] >> token % 8 & 1}
        left = fit if left is None else fit & left
    barred = r.sampling.stops if r.settled - r.prompt < r.sampling.min_tokens else []
    return left is not None and left <= set(barred)


def pay(r: Request, alone: bool = False) -> Delta | None:
    """Settle the token sampled last by what the matcher puts in its place; None if that is not
    known yet. alone: no other request waits."""
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
    """Fill in the tokens settled since the last delta, and the end if `r` is done."""
    delta.tokens = r.tokens[r.told : r.settled]
    r.told = r.settled
    if r.done is not None:
        delta.done, delta.preempted = r.done, r.preempted
    return delta


def _append(r: Request, token: int) -> None:
    """Settle a sampled token."""
    sampling = r.sampling
    r.tokens[r.settled] = token
    r.settled += 1
    if token in sampling.stops:
        r.done = "stop"
    elif r.settled - r.prompt >= sampling.max_tokens:
        r.done = "length"


def _follow(r: Request, matcher: Matcher, token: int, tokens: list[int]) -> None:
    """Settle the tokens that replace a sampled one, up to the end of the answer."""
    stops, room = r.sampling.stops, r.prompt + r.sampling.max_tokens - r.settled
    r.jumped = tokens != [token]
    if not r.jumped:
        if r.settled == len(r.tokens):
            r.tokens.append(token)  # its place was recalled
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
    """Void the flying chunks of `r` and the token that the executor samples for it. Of what they
    compute, only the first `computed` tokens count."""
    del r.tokens[r.settled :]
    r.computed = min(r.computed, computed)
    r.void, r.sampled = r.flying, False


def _score(r: Request, start: int, end: int) -> Score | None:
    """The prompt logprobs to take from the chunk [start, end) and not taken before."""
    top = r.sampling.prompt_logprobs
    if top is None:
        return None
    first = max(start, r.scored, r.sampling.score_from - 1)
    targets = r.tokens[first + 1 : min(end, r.prompt - 1) + 1]
    r.scored = max(r.scored, first + len(targets))
    return Score(first - start, targets, top) if targets else None
