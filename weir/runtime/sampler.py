"""Chooses the next token of every chunk that samples: all rows at once, logit edits row by row.

The parameters of a request are read once and kept by its row. A row with unusable logits or
parameters fails alone. The arithmetic is in ops/sample.py.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from weir.core import Chunk, Sampling
from weir.ops import sample
from weir.runtime.penalties import Penalties
from weir.runtime.stage import Stage, upload

COLDEST = 1e-5
"""A temperature below this is greedy: dividing by it would overflow."""

WISHES = np.dtype(
    [
        ("known", np.bool_),
        ("edited", np.bool_),  # has an `Edit`
        ("simple", np.bool_),  # a `Choice` says all
        ("filtered", np.bool_),  # a filter cuts its row
        ("temperature", np.float32),  # 0: greedy
        ("top_k", np.int64),
        ("top_p", np.float64),
        ("min_p", np.float64),
        ("seed", np.uint64),
        ("logprobs", np.int32),  # -1: none
    ],
    align=True,
)


@dataclass(slots=True, eq=False)
class Edit:
    """The changes of one request to its logits, other than penalties."""

    bias: tuple[Tensor, Tensor] | None  # ids int64, values float32
    allowed: Tensor | None  # ids int64
    stops: Tensor | None  # ids int64, suppressed before `until`
    until: int  # position

    def apply(self, logits: Tensor, position: int) -> None:
        """Change logits [V], from which the token at `position` is chosen."""
        if self.allowed is not None:
            kept = logits[self.allowed]
            logits.fill_(-torch.inf)[self.allowed] = kept
        if self.bias is not None:
            logits.index_add_(0, *self.bias)
        if self.stops is not None and position < self.until:
            logits.index_fill_(0, self.stops, -torch.inf)


@dataclass(slots=True, eq=False)
class Choice:
    """The sampling parameters of B rows that can be recorded: tensors of B values."""

    target: Tensor  # int64: rows of Tables that take the tokens
    temperature: Tensor  # float32; 0: greedy
    u: Tensor  # float64
    filters: sample.Filters
    plain: bool  # no row has a filter
    enough: bool  # its requests ask for nothing else

    def tokens(self, logits: Tensor, filtered: bool, rows: slice = slice(None)) -> Tensor:
        """Of some rows, from logits [B, V]: int64 [B]; -1: none could be chosen."""
        filters = self.filters[rows] if filtered else None
        return sample.choose(logits, self.temperature[rows], self.u[rows], filters)


@dataclass(slots=True, eq=False)
class Draw:
    """All that is needed to choose one token for each of B chunks."""

    chunks: list[Chunk]
    choice: Choice
    late: bool  # some masks follow later: see `Sampler.mask`
    masked: tuple[Tensor, Tensor, Tensor] | None  # as sample.restrict takes them
    edits: list[tuple[int, int, Edit]]  # row, position, edit
    penalised: tuple[Tensor, Tensor, Tensor] | None  # rows, slots; penalties float32 [3, rows]
    scored: tuple[Tensor, list[Chunk], int] | None  # rows that want logprobs; the most wanted


class Sampler:
    """Sampling for the requests of one model; rows are those of Tables."""

    def __init__(self, vocab: int, device: torch.device):
        self.vocab = vocab
        self.device = device
        self.wishes = np.zeros(0, WISHES)  # by row
        self.edits: dict[int, Edit] = {}  # by row
        self.penalties = Penalties(vocab, device)

    def forget(self, uids: Iterable[int], rows: Sequence[int]) -> None:
        for row in rows:
            self.edits.pop(row, None)
            if row < len(self.wishes):
                self.wishes["known"][row] = False
        self.penalties.forget(uids)

    def plan(
        self, chunks: Sequence[Chunk], rows: NDArray[np.int64], failed: dict[int, str], stage: Stage
    ) -> Draw:
        """Gather the parameters of the chunks, whose requests have these rows. A request with
        impossible parameters goes to `failed`, and its row is computed without them."""
        choice, wishes = self.choice(chunks, rows, failed, stage), self.wishes[rows]
        scored = np.flatnonzero(wishes["logprobs"] >= 0)
        late = any(chunk.late for chunk in chunks)
        return Draw(
            chunks=list(chunks),
            choice=choice,
            late=late,
            masked=None if late else _masked(chunks, {}, stage.put),
            edits=[
                (i, chunks[i].start + chunks[i].length, self.edits[int(rows[i])])
                for i in np.flatnonzero(wishes["edited"]).tolist()
            ],
            penalised=self._penalised(chunks, failed, stage),
            scored=(
                (stage.put(scored), [chunks[i] for i in scored], int(wishes["logprobs"].max()))
                if len(scored)
                else None
            ),
        )

    def choice(
        self,
        chunks: Sequence[Chunk],
        rows: NDArray[np.int64],
        failed: dict[int, str],
        stage: Stage,
        padding: tuple[int, int] | None = None,
    ) -> Choice:
        """The part of `plan` that can be recorded. padding: the chunks of a padded lane, and the
        row that takes the tokens of those that do not sample."""
        size, unused = padding or (len(chunks), 0)
        asked = np.zeros(size, WISHES)
        asked["top_p"] = 1.0
        target, u = np.full(size, unused, np.int64), np.zeros(size)
        at = [i for i, c in enumerate(chunks) if c.sample is not None]
        if at:
            some = [chunks[i] for i in at]
            asked[at] = self._wishes(some, rows[at], failed)
            target[at] = rows[at]
            position = np.array([c.start + c.length for c in some], np.int64)
            u[at] = sample.uniform(asked["seed"][at], position)
        free = all(c.mask is None and not c.late for c in chunks)
        enough = free and bool(asked["simple"][at].all())
        return Choice(
            target=stage.put(target),
            temperature=stage.put(asked["temperature"]),
            u=stage.put(u),
            filters=sample.Filters(
                *(stage.put(asked[name]) for name in ("top_k", "top_p", "min_p"))
            ),
            plain=not asked["filtered"].any(),
            enough=enough,
        )

    def _wishes(
        self, chunks: Sequence[Chunk], rows: NDArray[np.int64], failed: dict[int, str]
    ) -> NDArray[np.void]:
        """The parameters of each chunk's request, read when it is first met."""
        if rows.max() >= len(self.wishes):
            more = np.zeros(int(rows.max()) + 1, WISHES)
            self.wishes = np.concatenate([self.wishes, more])
        for i in np.flatnonzero(~self.wishes["known"][rows]).tolist():
            self._learn(int(rows[i]), chunks[i], failed)
        return self.wishes[rows]

    def mask(self, draw: Draw, masks: dict[int, bytes]) -> None:
        """Give a late draw, whose stage is gone, its masks, by uid."""
        draw.masked = _masked(
            draw.chunks, masks, lambda array: upload(torch.from_numpy(array), self.device)
        )

    def draw(self, logits: Tensor, draw: Draw) -> tuple[Tensor, tuple[Tensor, ...] | None]:
        """Choose from logits [B, V], which may be changed. → tokens int64 [B]; -1: none could be
        chosen. Of `draw.scored`, what ops.sample.logprobs gives."""
        raw = logits
        if draw.scored is not None:
            raw = logits[draw.scored[0]]
        if draw.masked is not None:
            sample.restrict(logits, *draw.masked)
        if draw.edits or draw.penalised is not None:
            logits = logits.float()
        for row, position, edit in draw.edits:
            edit.apply(logits[row], position)
        if draw.penalised is not None:
            rows, slots, penalties = draw.penalised
            seen, counts = self.penalties.seen[slots], self.penalties.counts[slots]
            logits[rows] = sample.penalise(logits[rows], seen, counts, *penalties)
        tokens = draw.choice.tokens(logits, not draw.choice.plain)
        if draw.scored is None:
            return tokens, None
        chosen = tokens[draw.scored[0]].clamp(min=0)
        return tokens, sample.logprobs(raw, chosen, draw.scored[2])

    def _learn(self, row: int, chunk: Chunk, failed: dict[int, str]) -> None:
        s = chunk.sample
        assert s is not None
        wish = self.wishes[row]
        warm = s.temperature >= COLDEST
        wish["filtered"] = warm and (s.top_k > 0 or s.top_p < 1.0 or s.min_p > 0.0)
        wish["temperature"] = s.temperature if warm else 0.0
        wish["top_p"], wish["min_p"] = s.top_p, s.min_p
        wish["top_k"] = min(s.top_k, self.vocab)
        wish["seed"] = s.seed & (2**64 - 1)
        wish["logprobs"] = -1 if s.logprobs is None else min(s.logprobs, self.vocab)
        wish["known"] = True
        try:
            edit = self._edit(s, chunk.prompt)
        except ValueError as error:
            failed[chunk.uid], edit = str(error), None
        wish["edited"] = edit is not None
        if edit is not None:
            self.edits[row] = edit
        beside = s.penalised or s.logprobs is not None or edit is not None
        wish["simple"] = not beside

    def _edit(self, s: Sampling, prompt: int) -> Edit | None:
        stops = [t for t in s.stops if 0 <= t < self.vocab] if s.min_tokens > 0 else []
        if not (s.logit_bias or stops or s.allowed is not None):
            return None
        values = torch.tensor(list(s.logit_bias.values()), dtype=torch.float32)
        return Edit(
            bias=(
                (self._ids(s.logit_bias, "logit_bias"), upload(values, self.device))
                if s.logit_bias
                else None
            ),
            allowed=None if s.allowed is None else self._ids(s.allowed, "allowed_token_ids"),
            stops=self._ids(stops, "stop_token_ids") if stops else None,
            until=prompt + s.min_tokens,
        )

    def _ids(self, tokens: Iterable[int], name: str) -> Tensor:
        tokens = list(tokens)
        for token in tokens:
            if not 0 <= token < self.vocab:
                raise ValueError(f"{name} holds {token}, outside the vocabulary of {self.vocab}")
        return upload(torch.tensor(tokens, dtype=torch.int64), self.device)

    def _penalised(
        self, chunks: Sequence[Chunk], failed: dict[int, str], stage: Stage
    ) -> tuple[Tensor, Tensor, Tensor] | None:
        rows, slots, penalties = [], [], []
        for i, c in enumerate(chunks):
            if c.sample is not None and c.sample.penalised:
                if not self.penalties.complete(c):
                    failed[c.uid] = "the tokens before this chunk, to be penalised, are not known"
                    continue
                rows.append(i)
                slots.append(self.penalties.slot[c.uid])
                s = c.sample
                penalties.append((s.repetition_penalty, s.presence_penalty, s.frequency_penalty))
        if not rows:
            return None
        values = stage.put(np.array(penalties, np.float32).T)
        return stage.put(np.array(rows, np.int64)), stage.put(np.array(slots, np.int64)), values


def _masked(
    chunks: Sequence[Chunk], late: dict[int, bytes], put: Callable[[NDArray[Any]], Tensor]
) -> tuple[Tensor, Tensor, Tensor] | None:
    """The rows that have a mask, the index of each one's, and the distinct masks, padded to the
    longest: a shorter one allows nothing beyond its end."""
    masks = [late.get(chunk.uid) if chunk.late else chunk.mask for chunk in chunks]
    rows = [i for i, mask in enumerate(masks) if mask is not None]
    if not rows:
        return None
    each = {id(mask): mask for mask in masks if mask is not None}  # equal ones mostly are the same
    number = {one: n for n, one in enumerate(each)}
    which = [number[id(mask)] for mask in masks if mask is not None]
    width = max(map(len, each.values()))
    bits = np.frombuffer(b"".join(mask.ljust(width, b"\0") for mask in each.values()), np.uint8)
    place = put(np.array([rows, which], np.int64))
    return place[0], place[1], put(bits.reshape(len(each), width).copy())
