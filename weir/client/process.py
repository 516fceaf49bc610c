"""One engine process, from spawn to reaping: its socket, its pipes, and why it ended.

It gets its `Boot` through standard input, which closes when this process ends. Messages go over a
ZeroMQ socket in a private folder or, if that is impossible, on loopback. The token given through
the pipe keeps out other users of this machine.
"""

import asyncio
import contextlib
import logging
import os
import secrets
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec
import zmq
import zmq.asyncio

from weir.errors import EngineDead
from weir.wire import RECORD, Boot, Deltas, Logged, Ready, Stop, Up, decode_down, encode

log = logging.getLogger(__name__)

INTERVAL = 0.25
"""Seconds between checks for a hang; heartbeats come half as often."""

LONGEST_PATH = 100
"""Characters that a Unix socket's path may have on any system."""

LAST_WORDS = 4096
"""Bytes of standard error kept, to explain why the process died."""


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds until an engine counts as hung and is killed; 0: never."""

    step: float = 60.0
    heartbeat: float = 5.0  # of silence
    start: float = 600.0
    stop: float = 5.0  # after it was told to stop; it may have a cache to save


class EngineProcess:
    """One process of the engine. receive: called with the deltas of each step."""

    def __init__(
        self, factory: str, config: Any, receive: Callable[[Deltas], None], timeouts: Timeouts
    ):
        self._factory = factory
        self._config = config
        self._receive = receive
        self._timeouts = timeouts
        self.worked = False  # whether it has completed a request
        self._token = secrets.token_hex(16)
        self._identity = f"{self._token}loop".encode()
        self._ready: asyncio.Future[Ready] = asyncio.get_running_loop().create_future()
        self._heard = 0.0  # when it last gave a sign of life
        self._busy_since = 0.0
        self._fatal = ""
        self._words = b""  # the end of its standard error
        self._tasks: list[asyncio.Task[None]] = []
        # the process's only context, so that no forgotten socket can block its end
        self._socket = zmq.asyncio.Context.instance().socket(zmq.ROUTER)
        self._socket.set_hwm(0)
        self._folder = tempfile.mkdtemp(prefix="weir-")  # mode 0700
        self._process: asyncio.subprocess.Process | None = None

    # -- life ----------------------------------------------------------------------------------

    async def start(self) -> Ready:
        """Spawn and wait until it is ready. Raises `EngineDead`, which says why it failed."""
        try:
            ready = await self._launch()
        except BaseException:
            await self._bury()
            raise
        if ready is None:
            raise EngineDead(await self._bury())
        return ready

    async def _spawn(self) -> None:
        path = os.pathsep.join(folder or os.getcwd() for folder in sys.path)
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", "weir.host"),
            stdin=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": path},  # the same modules as in this process
        )

    async def _launch(self) -> Ready | None:
        spawning = asyncio.create_task(self._spawn())
        try:
            await asyncio.shield(spawning)
        except asyncio.CancelledError:
            await spawning  # to know the process, which must be killed
            raise
        assert self._process is not None
        self._tasks = [
            asyncio.create_task(self._read_messages()),
            asyncio.create_task(self._read_stderr()),
        ]
        self._tell(self._bind())
        exited = asyncio.create_task(self._process.wait())
        waits: set[asyncio.Future[Any]] = {self._ready, exited}
        await asyncio.wait(
            waits, timeout=self._timeouts.start or None, return_when=asyncio.FIRST_COMPLETED
        )
        if self._ready.done():
            exited.cancel()
            return self._ready.result()
        if not exited.done():
            self._fatal = f"the engine was not ready after {self._timeouts.start:g} s"
        return None

    def send(self, message: Up) -> None:
        """Queue a message; never waits, and drops it if the process is gone."""
        if self._ready.done() and not self._socket.closed:
            self._socket.send_multipart([self._identity, encode(message)])

    async def ended(self) -> str:
        """Wait until it has died or was killed because it hung. Returns why."""
        assert self._process is not None
        exited = asyncio.create_task(self._process.wait())
        while not exited.done() and not self._fatal:
            before = time.monotonic()
            await asyncio.wait({exited}, timeout=INTERVAL)
            now = time.monotonic()
            if now - before > 4 * INTERVAL:  # this process was stopped itself: judge nothing
                self._heard, self._busy_since = now, 0.0
            self._fatal = self._fatal or self._hangs(now)
        exited.cancel()
        return await self._bury()

    async def stop(self) -> None:
        """Ask it to exit, and kill it if it does not in time."""
        if self._process is not None and self._process.returncode is None:
            self.send(Stop())
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._process.wait(), self._timeouts.stop)
        await self._bury()

    def _hangs(self, now: float) -> str:
        """Why it counts as hung; empty if it does not."""
        if 0 < self._timeouts.heartbeat < now - self._heard:
            return f"the engine hung: no sign of life for {now - self._heard:.1f} s"
        if self._busy_since and 0 < self._timeouts.step < now - self._busy_since:
            return f"the engine hung: a step took more than {self._timeouts.step:g} s"
        return ""

    async def _bury(self) -> str:
        """Kill and reap it, read its last output and remove its folder. Returns why it died."""
        process = self._process
        if process is not None:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
            await process.wait()
            if process.stdin is not None:
                process.stdin.close()
            await asyncio.sleep(0.05)  # what it sent before its death is still on the way
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._socket.close(linger=0)
        shutil.rmtree(self._folder, ignore_errors=True)
        return self._reason()

    def _reason(self) -> str:
        code = self._process.returncode if self._process is not None else None
        if self._fatal:
            return self._fatal
        if code == -signal.SIGKILL:
            how = "was killed by SIGKILL, as happens when memory runs out"
        elif code is not None and code < 0:
            how = f"was killed by signal {-code} ({signal.strsignal(-code)})"
        else:
            how = f"ended with exit code {code}"
        lines = self._words.decode(errors="replace").strip().splitlines()[-5:]
        return f"the engine process {how}" + (f": {' | '.join(lines)}" if lines else "")

    # -- messages ------------------------------------------------------------------------------

    def _bind(self) -> str:
        path = f"{self._folder}/engine"
        if zmq.has("ipc") and len(path) <= LONGEST_PATH:
            self._socket.bind(f"ipc://{path}")
        else:
            self._socket.bind("tcp://127.0.0.1:*")
        return self._socket.get_string(zmq.LAST_ENDPOINT)

    def _tell(self, endpoint: str) -> None:
        """Send the process its `Boot`. Its standard input stays open while this process lives."""
        assert self._process is not None and self._process.stdin is not None
        boot = Boot(endpoint, self._token, self._factory, self._config, 2 * INTERVAL)
        self._process.stdin.write(msgspec.json.encode(boot) + b"\n")

    async def _read_messages(self) -> None:
        while True:
            identity, *frames = await self._socket.recv_multipart()
            if not identity.startswith(self._token.encode()):
                continue  # not our engine
            message = decode_down(frames[0])
            self._heard = time.monotonic()
            if isinstance(message, Deltas):
                self._busy_since = message.stats.busy_since
                if any(delta.done in ("stop", "length") for delta in message.deltas):
                    self.worked = True
                try:
                    self._receive(message)
                except Exception:  # our error: the engine must not count as hung
                    log.exception("a step's results could not be delivered")
            elif isinstance(message, Ready):
                self._ready.set_result(message)
            else:
                self._fatal = message.message

    async def _read_stderr(self) -> None:
        """Pass its log and standard error on to ours, and keep the end of them."""
        assert self._process is not None and self._process.stderr is not None
        rest = b""
        while chunk := await self._process.stderr.read(65536):
            *lines, rest = (rest + chunk).split(b"\n")
            if len(rest) > LAST_WORDS:
                lines, rest = [*lines, rest], b""
            for line in lines:
                self._pass_on(line + b"\n")
        self._pass_on(rest)

    def _pass_on(self, line: bytes) -> None:
        if line.startswith(RECORD):
            with contextlib.suppress(msgspec.DecodeError):
                said = msgspec.json.decode(line[len(RECORD) :], type=Logged)
                logging.getLogger(said.logger).log(said.level, "%s", said.message)
                if said.level >= logging.WARNING:  # lesser records do not explain a death
                    self._words = (self._words + said.message.encode() + b"\n")[-LAST_WORDS:]
                return
        self._words = (self._words + line)[-LAST_WORDS:]
        with contextlib.suppress(OSError):
            os.write(2, line)
