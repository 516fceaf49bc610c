"""A server for the duration of a command: on loopback, with a free port and its own key."""

import asyncio
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from weir.errors import ConfigError
from weir.http import Http, HttpError


@dataclass(slots=True)
class Private:
    """A running server. seconds: from the start of its process until it was ready."""

    url: str
    headers: dict[str, str]  # that requests must carry
    process: subprocess.Popen[bytes]
    seconds: float


@contextmanager
def private(
    model: str,
    flags: Sequence[str] = (),
    environ: Mapping[str, str] | None = None,
    on_wait: Callable[[float], None] = lambda seconds: None,
    timeout: float = 600.0,
) -> Iterator[Private]:
    """Run `weir serve` and wait until it is ready. on_wait: called meanwhile, with the seconds.

    Raises `ConfigError` with the end of the server's log if it ends or is not ready in time.
    """
    port, key = free_port(), secrets.token_urlsafe()
    headers = {"Authorization": f"Bearer {key}"}
    command = [sys.executable, "-m", "weir.cli", "serve", model, "--host", "127.0.0.1"]
    command += ["--port", str(port), "--log-level", "warning", *flags]
    with tempfile.TemporaryFile() as log:
        begin = time.perf_counter()
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**os.environ, **(environ or {}), "WEIR_API_KEY": key},
            start_new_session=True,  # Ctrl-C in the terminal is only for this program
        )
        try:
            http = Http(f"http://127.0.0.1:{port}", headers, timeout=5.0)
            while not asyncio.run(ready(http)):
                waited = time.perf_counter() - begin
                if process.poll() is not None or waited > timeout:
                    log.seek(0)
                    raise ConfigError(f"the server did not start: {last_words(log.read())}")
                on_wait(waited)
                time.sleep(0.05)
            yield Private(http.base, headers, process, time.perf_counter() - begin)
        finally:
            stop(process)


async def ready(http: Http) -> bool:
    try:
        await http.get("/ready")
    except HttpError:
        return False
    return True


def stop(process: subprocess.Popen[bytes], patience: float = 10.0) -> None:
    """Terminate the process, then kill it and all that it started in its session."""
    if process.poll() is None:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(patience)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def last_words(log: bytes, lines: int = 5) -> str:
    said = [line for line in log.decode(errors="replace").splitlines() if line.strip()]
    return "\n".join(said[-lines:]) or "it said nothing"
