"""Compiles grammars in processes that can be killed, and caches the results.

A pattern may be hostile: its own request is refused after `seconds`; others are not affected.
Clients use it before a request reaches the engine. It blocks and is thread-safe.
"""

import contextlib
import hashlib
import os
import tempfile
import threading
import time
from collections import OrderedDict
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from pathlib import Path
from queue import LifoQueue

import msgspec

from weir.core import Grammar
from weir.errors import BadRequest, Overloaded
from weir.grammar.job import Answer, Job
from weir.grammar.process import Process
from weir.params import StructuredOutputs

MEMORY = 4 << 30
START = 60.0
"""Seconds that a worker may take to start; not part of a grammar's time."""
WORKERS = 2
MAX_WAITING = 64
REMEMBERED = 1024
"""Answers kept in memory, including refusals."""


class Worker:
    """A worker process, started at first use and again after it was stopped."""

    def __init__(self) -> None:
        self._process: Process | None = None

    def run(self, job: Job, seconds: float) -> Answer:
        """Raises TimeoutError, OSError if the process died, and Overloaded if none could be
        started. Any error stops the process."""
        try:
            process = self._process or self._started()
            process.send(msgspec.json.encode(job))
            return msgspec.msgpack.decode(_answer(process, seconds), type=Answer)
        except BaseException:
            self.stop()
            raise

    def _started(self) -> Process:
        process = self._process = Process("weir.grammar.worker")
        try:
            _answer(process, START)  # an empty message: it is ready
        except OSError as error:
            raise Overloaded(f"no process to compile grammars could be started: {error}") from None
        return process

    def stop(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.stop()


def _answer(process: Process, seconds: float) -> bytes:
    deadline = time.monotonic() + seconds
    while (left := deadline - time.monotonic()) > 0:
        if messages := process.receive(left):
            return messages[0]
    raise TimeoutError(f"it took more than {seconds:g} s")


class Compiler:
    """seconds: time limit of one grammar. backend: see `weir.grammar.compile`. folder: stores
    compiled grammars beyond this process; None: no storage. memory: bytes a worker may use."""

    def __init__(
        self,
        backend: str = "auto",
        seconds: float = 10.0,
        folder: Path | None = None,
        memory: int = MEMORY,
    ):
        self.backend = backend
        self.seconds = seconds
        self._folder = folder
        self._memory = memory
        self._idle: LifoQueue[Worker] = LifoQueue()
        self._workers = [Worker() for _ in range(WORKERS)]
        for worker in self._workers:
            self._idle.put(worker)
        self._threads = ThreadPoolExecutor(WORKERS, "weir-compiler")
        self._waiting = 0
        self._answers: OrderedDict[str, Answer] = OrderedDict()
        self._lock = threading.Lock()

    def submit(self, asked: StructuredOutputs) -> Future[Grammar]:
        """Run `compile` on a thread of the compiler. Raises `Overloaded` if `MAX_WAITING` wait."""
        if self._waiting >= MAX_WAITING:
            raise Overloaded(
                f"{self._waiting} grammars wait to be compiled: try again later",
                retry_after=self.seconds,
            )
        with self._lock:
            self._waiting += 1
        compiled = self._threads.submit(self.compile, asked)
        compiled.add_done_callback(self._done)
        return compiled

    def _done(self, _: Future[Grammar]) -> None:
        with self._lock:
            self._waiting -= 1

    def compile(self, asked: StructuredOutputs) -> Grammar:
        """Raises `BadRequest`, which says what is not supported, or that it takes too long."""
        if self.backend == "none":
            raise BadRequest("this server was started without grammars", param=asked.field)
        asked.check()
        key = self._key(asked)
        answer = self._remembered(key) or self._load(key) or self._ask(key, asked)
        self._remember(key, answer)
        if answer.grammar is None:
            raise BadRequest(answer.error, param=asked.field, code="invalid_grammar")
        return answer.grammar

    def known(self, asked: StructuredOutputs) -> Grammar | None:
        """The grammar if it is in memory; None otherwise or if it was refused."""
        answer = self._remembered(self._key(asked))
        return answer.grammar if answer is not None else None

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
        for worker in self._workers:
            worker.stop()

    def _key(self, asked: StructuredOutputs) -> str:
        """Equal for requests that compile to the same grammar. Raises `BadRequest`."""
        try:
            text = _version() + self.backend.encode() + msgspec.json.encode(asked)
        except (TypeError, ValueError, OverflowError, RecursionError) as error:
            raise BadRequest(
                f"this cannot be written as JSON: {error}",
                param=asked.field,
                code="invalid_grammar",
            ) from None
        return hashlib.sha256(text).hexdigest()[:32]

    def _remembered(self, key: str) -> Answer | None:
        with self._lock:
            return self._answers.get(key)

    def _ask(self, key: str, asked: StructuredOutputs) -> Answer:
        worker = self._idle.get()
        try:
            answer = self._remembered(key)  # another thread may have compiled it meanwhile
            if answer is not None:
                return answer
            answer = worker.run(Job(key, asked, self.backend, self._memory), self.seconds)
            self._store(key, answer)
            return answer
        except TimeoutError:
            return Answer(error=f"compiling this grammar takes more than {self.seconds:g} s")
        except OSError:
            return Answer(error="compiling this grammar takes too much memory")
        finally:
            self._idle.put(worker)

    def _remember(self, key: str, answer: Answer) -> None:
        with self._lock:
            self._answers[key] = answer
            self._answers.move_to_end(key)
            if len(self._answers) > REMEMBERED:
                self._answers.popitem(last=False)

    # -- on disk -------------------------------------------------------------------------------

    def _load(self, key: str) -> Answer | None:
        if self._folder is None:
            return None
        try:
            return msgspec.msgpack.decode((self._folder / key).read_bytes(), type=Answer)
        except (OSError, msgspec.DecodeError):
            return None

    def _store(self, key: str, answer: Answer) -> None:
        """Store a compiled grammar. A folder that cannot be written only costs speed."""
        if self._folder is None or answer.grammar is None:
            return
        with contextlib.suppress(OSError):
            self._folder.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=self._folder, delete=False) as file:
                file.write(msgspec.msgpack.encode(answer))
            os.replace(file.name, self._folder / key)


@cache
def _version() -> bytes:
    """A hash of the compiling code. Every key includes it, so older results are not read."""
    digest = hashlib.sha256()
    for source in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(source.read_bytes())
    return digest.digest()
