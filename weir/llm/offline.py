"""`LLM`: a model in this process and thread, for batches."""

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import FrameType
from typing import Any, Self, cast

from msgspec.structs import replace

from weir import build, connect
from weir.client import Limits, ModelInfo
from weir.client.assemble import Assembly
from weir.client.drive import Engine, request
from weir.client.ledger import Event, Ledger
from weir.config import load
from weir.errors import BadRequest, ConfigError, EngineDead
from weir.grammar.compiler import Compiler
from weir.llm.outputs import RequestOutput, begin, request_output
from weir.params import SamplingParams
from weir.progress import progress
from weir.text import Text

Prompts = str | list[int] | Sequence[str] | Sequence[list[int]]
Params = SamplingParams | Sequence[SamplingParams] | None
Message = Mapping[str, Any]
Told = Callable[[RequestOutput], None] | None


class LLM:
    """A model in this process and thread.

    ```
    with weir.LLM("smollm2-135m") as llm:
        for output in llm.generate(["Hello", "The capital of France is"]):
            print(output.outputs[0].text)
    ```
    settings: fields of `Config`. Raises `ConfigError`, also for a ranker or length log, which only
    servers have. Only one call at a time: meanwhile those of other threads are refused.
    """

    def __init__(self, model: str, **settings: Any):
        config = load({"model": model, **settings}, {})
        if config.ranker not in ("auto", "none") or config.length_log:
            raise ConfigError(
                "--ranker and --length-log need a server: here all requests come at once"
            )
        config = replace(config, ranker="none")
        sampling = connect.sampling(config)
        engine, text = build.engine(config), connect.text(config)
        self._take(engine, text, config.names, config.seed, connect.compiler(config))
        self.model.sampling = sampling

    @classmethod
    def of(cls, engine: Engine, text: Text, name: str = "model", seed: int = 0) -> Self:
        """An `LLM` of an engine made elsewhere."""
        llm = cls.__new__(cls)
        llm._take(engine, text, [name], seed, Compiler())
        return llm

    def _take(
        self, engine: Engine, text: Text, names: list[str], seed: int, compiler: Compiler
    ) -> None:
        context = engine.capacity.context
        vocab = min(text.vocab, engine.info.get("vocab", text.vocab))
        model = ModelInfo(names[0], names, context, vocab, text.eos, engine.info)
        self.model = model
        self.text = text
        self._engine = engine
        self._compiler = compiler
        self._turn = threading.Lock()
        self._closed = False
        self._ledger = Ledger(text, model, Limits(requests=0), seed=seed)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the engine's memory and end its threads."""
        self._closed = True
        self._engine.close()
        self._compiler.close()

    def generate(
        self, prompts: Prompts, params: Params = None, *, progress: bool = True, told: Told = None
    ) -> list[RequestOutput]:
        """Complete one prompt or many, given as text or token ids; results are in their order.

        params: for all prompts, or a list with one for each; default `model.sampling`. told: called
        with each result once it and all before it are complete, so that little is lost if a long
        run is stopped. Raises `BadRequest` before anything is computed if any request is invalid. A
        request that fails later ends with `finish_reason` "error".
        """
        listed = _listed(prompts)
        with self._alone():
            return self._run(self._admit(listed, self._each(params, len(listed))), progress, told)

    def chat(
        self,
        messages: Sequence[Message] | Sequence[Sequence[Message]],
        params: Params = None,
        *,
        progress: bool = True,
        told: Told = None,
        **template: Any,
    ) -> list[RequestOutput]:
        """The next message of one talk or many. template: see `Text.chat`; the rest: `generate`."""
        talks = _talks(messages)
        prompts = [self.text.chat(talk, **template) for talk in talks]
        each = self._each(params, len(talks))
        with self._alone():
            return self._run(self._admit(prompts, each, add_special_tokens=False), progress, told)

    def embed(
        self, prompts: Prompts, pooling: str = "mean", *, progress: bool = True
    ) -> list[list[float]]:
        """One normalised vector per prompt: the mean of its tokens' hidden states, or with pooling
        "last" the last. Raises `BadRequest` and `EngineDead`."""
        listed = _listed(prompts)
        params = self._each(SamplingParams(max_tokens=0), len(listed))
        with self._alone():
            assemblies = self._admit(listed, params, pool=pooling)
            self._run(assemblies, progress)
        failed = next((a for a in assemblies if a.vector is None), None)
        if failed is not None:
            raise EngineDead(f"request {failed.id} could not be computed: {failed.error}")
        return [cast(list[float], assembly.vector) for assembly in assemblies]

    def flush(self) -> None:
        """Drop all cached prefixes."""
        self._engine.flush()

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return self.text.encode(text, add_special_tokens=add_special_tokens)

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = True) -> str:
        return self.text.decode(ids, skip_special_tokens=skip_special_tokens)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Refuse a call during another (of a thread or of `told`), and after `close`."""
        if self._closed:
            raise EngineDead("this LLM was closed: make another")
        if not self._turn.acquire(blocking=False):
            raise BadRequest(
                "this LLM is answering another call: give one call all prompts, or use AsyncLLM"
            )
        try:
            yield
        finally:
            self._turn.release()

    def _admit(
        self,
        prompts: Sequence[str | list[int]],
        params: Sequence[SamplingParams],
        *,
        pool: str | None = None,
        add_special_tokens: bool = True,
    ) -> list[Assembly]:
        """Admit all requests or, if one is refused, none."""
        admitted: list[Assembly] = []
        try:
            for prompt, chosen in zip(prompts, params, strict=True):
                asked = chosen.structured_outputs
                assembly = self._ledger.admit(
                    prompt,
                    chosen,
                    now=time.monotonic(),
                    pool=pool,
                    add_special_tokens=add_special_tokens,
                    grammar=None if asked is None else self._compiler.compile(asked),
                )
                admitted.append(assembly)
        except BaseException as error:
            for assembly in admitted:
                self._ledger.end(assembly, "abort")
            if isinstance(error, BadRequest) and len(prompts) > 1:
                error.args = (f"prompt {len(admitted)}, counted from 0: {error}",)
            raise
        return admitted

    def _each(self, params: Params, count: int) -> Sequence[SamplingParams]:
        """One `SamplingParams` per prompt. Raises `BadRequest`."""
        listed = (
            [params or self.model.sampling] * count
            if params is None or isinstance(params, SamplingParams)
            else list(params)
        )
        if len(listed) != count:
            raise BadRequest(f"{len(listed)} params were given for {count} prompts", param="params")
        if not all(isinstance(one, SamplingParams) for one in listed):
            raise BadRequest("params must be SamplingParams, or a list of them", param="params")
        return listed

    def _run(
        self, assemblies: list[Assembly], shown: bool, told: Told = None
    ) -> list[RequestOutput]:
        """Step the engine until every request has ended and it has nothing left to do."""
        whole: list[RequestOutput] = []
        choices = {a.id: begin(a) for a in assemblies}
        with progress(len(assemblies), "generating", hidden=not shown) as bar:
            self._ledger.listeners = [lambda ended: bar.advance(1, ended.usage.prompt_tokens)]
            try:
                with interruptible() as interrupted:
                    for assembly in assemblies:
                        for submit in assembly.submits:
                            self._engine.add(request(submit))
                    while self._engine.busy and not interrupted.is_set():
                        for assembly, output in self._step():
                            choices[assembly.id][output.index].add(output)
                            bar.advance(0, 0, len(output.token_ids))
                        while len(whole) < len(assemblies) and assemblies[len(whole)].finished:
                            assembly = assemblies[len(whole)]
                            whole.append(request_output(assembly, choices[assembly.id]))
                            if told is not None:
                                told(whole[-1])
                if interrupted.is_set():
                    raise KeyboardInterrupt
            except EngineDead:
                raise
            except BaseException:
                self._abandon()
                raise
        return whole

    def _step(self) -> list[Event]:
        try:
            deltas = self._engine.step()
        except Exception as error:
            for assembly in list(self._ledger.live.values()):
                self._ledger.end(assembly, "error", f"the engine failed: {error!r}")
            raise EngineDead(f"the engine failed: {error!r}") from error
        events, aborts = self._ledger.settle(deltas, time.monotonic())
        for uid in aborts:
            self._engine.abort(uid)
        return events

    def _abandon(self) -> None:
        """Abort live requests and step the engine until it has released them."""
        for assembly in list(self._ledger.live.values()):
            _, uids = self._ledger.end(assembly, "abort")
            for uid in uids:
                self._engine.abort(uid)
        while self._engine.busy:
            self._engine.step()


@contextlib.contextmanager
def interruptible() -> Iterator[threading.Event]:
    """Ctrl-C only sets the event, so that no step is interrupted; a second one acts as usual."""
    noted = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield noted
        return
    previous = signal.getsignal(signal.SIGINT) or signal.SIG_DFL

    def note(number: int, frame: FrameType | None) -> None:
        noted.set()
        signal.signal(signal.SIGINT, previous)

    signal.signal(signal.SIGINT, note)
    try:
        yield noted
    finally:
        signal.signal(signal.SIGINT, previous)


def _listed(prompts: Prompts) -> list[str | list[int]]:
    """One prompt or many as a list of prompts."""
    if isinstance(prompts, str):
        return [prompts]
    several = isinstance(prompts, Iterable) and not isinstance(prompts, Mapping | bytes)
    listed: list[object] = list(prompts) if several else [None]
    if listed and all(isinstance(one, int) for one in listed):
        return [cast(list[int], listed)]
    if any(isinstance(one, Mapping) or not isinstance(one, Iterable) for one in listed):
        raise BadRequest("a prompt must be text or a list of token ids", param="prompt")
    return cast(list[str | list[int]], listed)


def _talks(
    messages: Sequence[Message] | Sequence[Sequence[Message]],
) -> Sequence[Sequence[Message]]:
    """One conversation or many as a list of conversations."""
    one = bool(messages) and isinstance(messages[0], Mapping)
    return cast(Sequence[Sequence[Message]], [messages] if one else messages)
