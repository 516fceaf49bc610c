"""An engine and a tokenizer small enough to know by heart, for tests of everything above them.

The tokenizer has one token a byte and one for the end. The engine is pure Python and its tokens are
a function of the prompt, the seed and the position alone, as a real engine's are. What it does to a
request can be scripted through the request's `user`: see `FakeEngine`.
"""

import logging
import os
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from weir.core import Capacity, Delta, Request, TokenLogprobs
from weir.text import Text
from weir.text.detokenize import byte_alphabet
from weir.text.vocabulary import Vocabulary
from weir.wire import Lengths, Stats

EOS = 256
VOCAB = 257


CHAT = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"


def text(template: str = CHAT) -> Text:
    """A byte-level tokenizer: token i is byte i, 256 ends."""
    tokens = {character: byte for byte, character in byte_alphabet().items()}
    tokenizer = Tokenizer(models.BPE(tokens | {"<end>": EOS}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<end>"])
    ends = {"eos_token": "<end>"}
    return Text(Vocabulary(tokenizer, None, [EOS], {"default": template}, ends))


def tokens_of(prompt: list[int], seed: int, temperature: float, count: int) -> list[int]:
    """The first `count` tokens of an answer: the prompt again and again when greedy, else random
    letters."""
    if temperature == 0:
        return [prompt[at % len(prompt)] for at in range(count)]
    return [Random(seed * 1_000_003 + at).randrange(97, 123) for at in range(count)]


@dataclass(slots=True)
class FakeEngine:
    """The `Engine` API over a list. Each step gives every running request one token.

    A request's `user` scripts it: "end:N" ends by EOS as its Nth token; "refuse" raises in `add`;
    "fail" ends it with an error; "raise" loses the engine; "die" kills the process, "die:PATH" only
    while the file is not there; "hang" stops it in a step, "hang:PATH" until the file is there;
    "hold:PATH" lets the request wait for the file after its first token, and others go on.
    """

    context: int = 256
    requests: int = 8
    step_seconds: float = 0.0
    info: dict[str, Any] = field(default_factory=lambda: {"device": "none"})
    live: dict[int, Request] = field(default_factory=dict)
    expected: list[Lengths] = field(default_factory=list)
    ended: list[Delta] = field(default_factory=list)
    counters: Stats = field(default_factory=Stats)
    flushed: int = 0
    pinned: dict[str, int] = field(default_factory=dict)
    closed: bool = False

    @property
    def capacity(self) -> Capacity:
        pages = self.context * self.requests // 16
        return Capacity(16, {1: pages}, tokens=512, requests=self.requests, context=self.context)

    def add(self, request: Request) -> None:
        if request.user == "refuse":
            raise ValueError("no room for this one")
        assert request.uid not in self.live
        if name := request.sampling.pin:
            if request.prompt > 64:
                why = "no room to pin it"
                self.ended.append(Delta(request.uid, done="error", error=why, refused=True))
                return
            self.pinned[name] = request.prompt
        self.live[request.uid] = request
        self.counters.prompt_tokens += request.prompt

    def abort(self, uid: int) -> None:
        if self.live.pop(uid, None) is not None:
            self.ended.append(Delta(uid, done="abort"))

    def expect(self, lengths: Lengths) -> None:
        self.expected.append(lengths)

    def flush(self) -> None:
        self.flushed += 1

    def unpin(self, name: str) -> None:
        self.pinned.pop(name, None)

    @property
    def busy(self) -> bool:
        return bool(self.live or self.ended)

    def step(self) -> list[Delta]:
        time.sleep(self.step_seconds)
        deltas, self.ended = self.ended, []
        running = [one for one in self.live.values() if not _held(one)][: self.requests]
        for request in running:
            deltas.append(self._advance(request))
            if deltas[-1].done is not None:
                del self.live[request.uid]
        self.counters.step += 1
        self.counters.step_requests.add(len(running))
        self.counters.generated_tokens += sum(len(delta.tokens) for delta in deltas)
        return deltas

    def stats(self) -> Stats:
        self.counters.running = min(len(self.live), self.requests)
        self.counters.waiting = len(self.live) - self.counters.running
        return self.counters

    def close(self) -> None:
        self.closed = True

    def _advance(self, request: Request) -> Delta:
        script, _, argument = request.user.partition(":")
        self._disturb(script, argument)
        if script == "fail":
            return Delta(request.uid, done="error", error="not a number")
        first = len(request.tokens) == request.prompt
        delta = Delta(request.uid)
        if first:
            delta.cached, delta.started = 0, time.monotonic()
            self._score(request, delta)
        sampling = request.sampling
        if sampling.pool is not None:
            delta.vector, delta.done = [1.0, float(request.prompt)], "length"
            return delta
        made = len(request.tokens) - request.prompt
        if made < sampling.max_tokens:
            prompt = request.tokens[: request.prompt]
            token = tokens_of(prompt, sampling.seed, sampling.temperature, made + 1)[-1]
            token = EOS if script == "end" and made + 1 == int(argument) else token
            request.tokens.append(token)
            delta.tokens = [token]
            if sampling.logprobs is not None:
                delta.logprobs = [_logprobs(token, sampling.logprobs)]
            made += 1
        if delta.tokens and delta.tokens[0] in sampling.stops and made > sampling.min_tokens:
            delta.done = "stop"
        elif made >= sampling.max_tokens:
            delta.done = "length"
        return delta

    def _score(self, request: Request, delta: Delta) -> None:
        top = request.sampling.prompt_logprobs
        if top is not None:
            scored = request.tokens[max(1, request.sampling.score_from) : request.prompt]
            delta.scores = [_logprobs(token, top) for token in scored]

    def _disturb(self, script: str, argument: str) -> None:
        if script == "raise":
            raise RuntimeError("the device is lost")
        if script == "hang":
            while not (argument and Path(argument).exists()):
                time.sleep(0.01)
        if script == "die" and not (argument and Path(argument).exists()):
            if argument:
                Path(argument).touch()
            time.sleep(0.05)  # let go what was sent before
            os.kill(os.getpid(), signal.SIGKILL)


def _held(request: Request) -> bool:
    script, _, argument = request.user.partition(":")
    begun = len(request.tokens) > request.prompt
    return script == "hold" and begun and not Path(argument).exists()


def _logprobs(token: int, top: int) -> TokenLogprobs:
    others = [(token + at) % VOCAB for at in range(top)]
    return TokenLogprobs(token, -0.5, 1, [(other, -0.5 - at) for at, other in enumerate(others)])


def engine(config: dict[str, Any]) -> FakeEngine:
    """The factory of an engine process; `config` holds FakeEngine's first fields."""
    return FakeEngine(**config)


def talking_engine(config: dict[str, Any]) -> FakeEngine:
    """A factory that logs, and prints what a library in C++ might."""
    logging.getLogger("weir.fakes").warning("mind %s", "the\ngap")
    os.write(2, b"plain\n")
    logging.getLogger("weir.fakes").info("that is all")
    return FakeEngine()


def broken_engine(config: dict[str, Any]) -> FakeEngine:
    """A factory that cannot: `config["how"]` says in which way."""
    if config["how"] == "exit":
        os.write(2, b"out of luck\n")
        os._exit(3)
    raise ValueError("the weights are not there")
