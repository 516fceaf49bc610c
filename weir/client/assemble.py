"""From the engine's deltas to a request's events: text, stop strings, logprobs, usage, timing.

Pure: no event loop, no engine, and time is an argument. Offline use and servers share it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from msgspec.structs import replace

from weir.client.events import Logprob, Output, Timing, Usage
from weir.core import Delta, Tier, TokenLogprobs
from weir.params import SamplingParams
from weir.text import Detokenizer, StopChecker, Text
from weir.wire import Submit

OTHERWISE = "The engine died, and the next one began this answer otherwise: send the request again."


@dataclass(slots=True, eq=False)
class Choice:
    """One of the `n` sequences of a request, from its first token to its end."""

    index: int
    submit: Submit
    text: Text
    params: SamplingParams
    finish_reason: str | None = None
    last: float = -1.0  # time of its latest token
    told: list[int] = field(default_factory=list)  # tokens so far
    again: int = 0  # how many of these a new engine has yet to repeat
    shown: int = 0  # tokens decoded so far, counted if there are stop strings
    detokenizer: Detokenizer | None = None
    stops: StopChecker | None = None

    def __post_init__(self) -> None:
        params = self.params
        if params.detokenize:
            self.detokenizer = Detokenizer(self.text.pieces(params.skip_special_tokens))
        if params.stops:
            self.stops = StopChecker(params.stops, params.include_stop_str_in_output)

    def unheard(self, delta: Delta) -> Delta:
        """The new part of a delta. One that differs from what was told becomes an error."""
        if self.again:
            known = self.told[-self.again :]
            repeated = min(self.again, len(delta.tokens))
            ends = delta.done in ("stop", "length") and repeated < self.again
            if ends or delta.tokens[:repeated] != known[:repeated]:
                return Delta(uid=delta.uid, done="error", error=OTHERWISE)
            self.again -= repeated
            delta = replace(
                delta, tokens=delta.tokens[repeated:], logprobs=delta.logprobs[repeated:]
            )
        self.told += delta.tokens
        return delta

    def push(self, delta: Delta) -> Output:
        """The event of a delta. If a stop string completes, the tokens after it are dropped."""
        output = Output(index=self.index, token_ids=delta.tokens)
        stop = self._stop_token(delta)
        hides = stop is not None and not self.params.include_stop_str_in_output
        shown = delta.tokens[:-1] if hides else delta.tokens
        matched = None
        if self.stops is None:
            output.text = self._decode(shown)
        else:
            for at, token in enumerate(shown, 1):
                self.shown += 1
                matched = self._emit(output, self._decode([token]))
                if matched is not None:
                    output.token_ids = delta.tokens[:at]
                    break
        if delta.done is not None and matched is None:
            matched = self._finish(output)
        if matched is not None:
            output.finish_reason, output.stop_reason = "stop", matched
        elif delta.done is not None:
            output.finish_reason, output.error = delta.done, delta.error
            output.refused = delta.refused
            if stop in self.params.stop_token_ids:
                output.stop_reason = stop
        if self.params.logprobs is not None:
            kept = delta.logprobs[: len(output.token_ids)]
            output.logprobs = [describe(self.text, entry) for entry in kept]
        self.finish_reason = output.finish_reason
        return output

    def _stop_token(self, delta: Delta) -> int | None:
        """The token that ended the sequence, if one did: EOS or one of the caller's."""
        if delta.done != "stop" or not delta.tokens:
            return None
        last = delta.tokens[-1]
        return last if last in self.submit.sampling.stops else None

    def _decode(self, tokens: list[int]) -> str:
        return self.detokenizer.push(tokens) if self.detokenizer is not None and tokens else ""

    def _emit(self, output: Output, text: str) -> str | None:
        """Add text that cannot begin a stop string. Returns the stop string completed, if any."""
        if self.stops is None or self.shown <= self.params.min_tokens:
            output.text += text
            return None
        emitted, matched = self.stops.push(text)
        output.text += emitted
        return matched

    def _finish(self, output: Output) -> str | None:
        """Add everything that was held back."""
        text = self.detokenizer.finish() if self.detokenizer is not None else ""
        matched = self._emit(output, text)
        if matched is None and self.stops is not None:
            output.text += self.stops.finish()
        return matched


@dataclass(slots=True, eq=False)
class Assembly:
    """One submitted prompt with all its choices, as it grows. Metrics, logs and traces read it once
    it has ended.

    prompt: None if token ids were given. program: its id, and its branch after a slash.
    prompt_logprobs: one entry per prompt position; None before `score_from` and for the first.
    held: deltas that came before the prompt was scored.
    gaps: seconds between successive token events of a choice.
    replays: times it was given to a new engine after one died.
    """

    id: str
    prompt: str | None
    prompt_ids: list[int]
    params: SamplingParams
    text: Text
    submits: list[Submit]
    usage: Usage
    timing: Timing
    program: str = ""
    choices: list[Choice] = field(default_factory=list)
    prompt_logprobs: list[Logprob | None] | None = None
    held: list[tuple[Choice, Delta]] = field(default_factory=list)
    vector: list[float] | None = None
    gaps: list[float] = field(default_factory=list)
    preempted: int = 0
    replays: int = 0
    error: str = ""

    def __post_init__(self) -> None:
        self.choices = [
            Choice(index, submit, self.text, self.params)
            for index, submit in enumerate(self.submits)
        ]
        self._begin()

    def _begin(self) -> None:
        self.held = []
        if self.params.prompt_logprobs is not None:
            unscored = min(max(1, self.params.score_from), len(self.prompt_ids))
            self.prompt_logprobs = [None] * unscored

    @property
    def finished(self) -> bool:
        return all(choice.finish_reason is not None for choice in self.choices)

    @property
    def finish_reasons(self) -> list[str]:
        """Those of the choices that have ended."""
        return [choice.finish_reason for choice in self.choices if choice.finish_reason is not None]

    @property
    def streamed(self) -> bool:
        """Whether any part of the answer has been delivered."""
        return self.timing.first >= 0 or any(c.finish_reason is not None for c in self.choices)

    def due(self, choice: Choice, delta: Delta) -> list[tuple[Choice, Delta]]:
        """Take in a delta's prompt logprobs; returns the deltas to push now. The first choice
        scores the prompt. Deltas of others that overtake it are held until it has."""
        if self.prompt_logprobs is None:
            return [(choice, delta)]
        self.prompt_logprobs.extend(describe(self.text, entry) for entry in delta.scores)
        self.held.append((choice, delta))
        scored = len(self.prompt_logprobs) >= len(self.prompt_ids)
        if not scored and not (choice.index == 0 and delta.done is not None):
            return []
        due, self.held = self.held, []
        return due

    def push(self, choice: Choice, delta: Delta, now: float) -> Output | None:
        """Process a delta of an open choice; None if there is nothing to show yet."""
        if delta.vector is not None:
            self.vector = delta.vector
        if delta.cached >= 0 and choice.index == 0:
            self.usage.cached_tokens = delta.cached
            self.usage.loaded_tokens = {
                Tier(tier).name.lower(): tokens for tier, tokens in delta.loaded.items()
            }
        if delta.started >= 0 and self.timing.started < 0:
            self.timing.started = delta.started
        self.preempted += delta.preempted
        delta = choice.unheard(delta)
        if not delta.tokens and delta.done is None:
            return None
        output = choice.push(delta)
        self._count(choice, len(output.token_ids), now)
        self.error = self.error or output.error
        return output

    def _count(self, choice: Choice, tokens: int, now: float) -> None:
        if not tokens:
            return
        self.usage.completion_tokens += tokens
        if self.timing.first < 0:
            self.timing.first = now
        if choice.last >= 0:
            self.gaps.append(now - choice.last)
        self.timing.last = choice.last = now

    def end(self, reason: str, error: str = "") -> list[Output]:
        """Close every open choice; text that was held back is shown."""
        delta = Delta(uid=0, done=reason, error=error)
        self.error = self.error or error
        return [c.push(delta) for c in self.choices if c.finish_reason is None]

    def restart(self) -> None:
        """Prepare for another engine, which begins anew and repeats the tokens told so far."""
        self.replays += 1
        self.preempted = 0
        if not self.streamed:
            self.timing.started = -1.0
        for choice in self.choices:
            choice.again = len(choice.told)
        self._begin()


def describe(text: Text, entry: TokenLogprobs) -> Logprob:
    """The engine's logprobs of one position, with text."""
    ranked = [_logprob(text, t, p, rank, []) for rank, (t, p) in enumerate(entry.top, 1)]
    return _logprob(text, entry.token, entry.logprob, entry.rank, ranked)


def _logprob(text: Text, token: int, logprob: float, rank: int, top: Sequence[Logprob]) -> Logprob:
    return Logprob(
        token_id=token,
        token=text.token(token),
        bytes=list(text.token_bytes(token)),
        logprob=logprob,
        rank=rank,
        top=list(top),
    )
