"""The server process: starts the engine process and the application, and handles signals."""

import asyncio
import contextlib
import gc
import logging
import signal
import socket
import time
from collections.abc import Iterator
from typing import Any

import uvicorn
import uvloop
from starlette.types import ASGIApp

from weir import connect
from weir.client import Client
from weir.config import Config
from weir.errors import ConfigError
from weir.server import logs
from weir.server.app import create_app
from weir.server.head import BoundedHead
from weir.server.service import Service

log = logging.getLogger(__name__)

BACKLOG = 2048
CLOSED = "The server was shut down before this was done: send it again."
GRACE = 5  # seconds to send the remaining answers once the engine is idle


def serve(config: Config) -> None:
    """Serve until a signal: SIGTERM or SIGINT drains, a second one stops at once.

    Raises `ConfigError` for an address or model that is not available, and `EngineDead` with the
    reason if the engine cannot start.
    """
    logs.configure(config.log_level, config.log_format)
    listening = listen(config.host, config.port)
    client = connect.remote(config)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run(client, config, listening))


def listen(host: str, port: int) -> socket.socket:
    """A listening socket, bound before anything slow starts so that a conflict shows at once."""
    if not 0 <= port < 2**16:  # the system would truncate others
        raise ConfigError(f"--port must be 0 to 65535, not {port}")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        # asyncio disables Nagle's algorithm only if the protocol is named
        with contextlib.ExitStack() as undo:
            listening = undo.enter_context(socket.socket(family, kind, protocol))
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind(address)
            listening.listen(BACKLOG)
            undo.pop_all()
    except OSError as error:
        raise ConfigError(
            f"cannot listen on {host}:{port} ({error.strerror}): choose another --host or --port"
        ) from None
    return listening


def settings(app: ASGIApp, **more: Any) -> uvicorn.Config:
    """The uvicorn settings of all our applications."""
    return uvicorn.Config(
        app,
        http=BoundedHead,
        lifespan="off",
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=75,
        backlog=BACKLOG,
        **more,
    )


def address(listening: socket.socket) -> str:
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class Server(uvicorn.Server):
    """uvicorn whose signals only call `stop`: the first stops it once live requests are done, the
    next one at once."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        numbers = (signal.SIGTERM, signal.SIGINT)
        for number in numbers:
            loop.add_signal_handler(number, self.stop)
        try:
            yield
        finally:
            for number in numbers:
                loop.remove_signal_handler(number)

    def stop(self) -> None:
        self.force_exit = self.should_exit
        self.should_exit = True


class Draining(Server):
    """The first signal drains; the next one aborts all jobs."""

    def __init__(self, config: uvicorn.Config, service: Service):
        super().__init__(config)
        self._service = service
        self._drain_task: asyncio.Task[None] | None = None

    def stop(self) -> None:
        service = self._service
        if service.draining:
            log.warning("stopping now")
            service.client.abort(None, CLOSED)
            self.should_exit = self.force_exit = True
            return
        service.draining = True
        limit = service.config.shutdown_timeout
        log.info("shutting down: %d requests get up to %g s", len(service.jobs), limit)
        self._drain_task = asyncio.create_task(self._drain(limit))

    async def _drain(self, limit: float) -> None:
        deadline = time.monotonic() + limit
        while self._service.jobs and time.monotonic() < deadline and not self.should_exit:
            await asyncio.sleep(0.02)
        if lost := self._service.client.abort(None, CLOSED):
            log.warning("%d requests were not done in %g s and are aborted", lost, limit)
        self.should_exit = True


async def run(client: Client, config: Config, listening: socket.socket) -> None:
    """Start a client, serve it, and close it in the end.

    The port answers at once, with 503 until the engine is ready. Raises what `client.start` does.
    """
    began = time.monotonic()
    app = create_app(client, config)
    service: Service = app.state.service
    server = Draining(
        settings(app, root_path=config.root_path, timeout_graceful_shutdown=GRACE), service
    )
    url = address(listening)
    log.info("starting %s on %s; requests get a 503 until it is ready", client.model.name, url)
    serving = asyncio.create_task(server.serve(sockets=[listening]))
    telling = asyncio.create_task(logs.pulse(client))
    starting = asyncio.create_task(client.start())
    try:
        await asyncio.wait((serving, starting), return_when=asyncio.FIRST_COMPLETED)
        if starting.done() and not serving.done():
            starting.result()  # raises the reason why the engine cannot start
            log.info(
                "ready after %.1f s: %s on %s", time.monotonic() - began, client.model.name, url
            )
            gc.collect()
            gc.freeze()  # the collector need not traverse what lives as long as the server
        await serving
    finally:
        starting.cancel()
        telling.cancel()
        server.should_exit = True
        await asyncio.gather(serving, starting, return_exceptions=True)
        await client.close()
        if service.tracer is not None:
            service.tracer.close()
