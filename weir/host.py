"""The engine process: `python -m weir.host`, started by a client, never by hand.

It reads a `Boot` from standard input, makes the engine, sends `Ready` and runs the loop. A second
thread sends heartbeats however long a step takes, and ends the process when its parent is gone.
"""

import gc
import logging
import os
import select
import shutil
import sys
import threading
import time
import traceback
import typing
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import msgspec
import zmq

from weir.client.drive import Engine, Loop
from weir.errors import WeirError
from weir.wire import RECORD, Boot, Deltas, Down, Fatal, Logged, Ready, Up, decode_up, encode

log = logging.getLogger("weir.host")

TIDY_IDLE, TIDY_BUSY = 10.0, 300.0  # seconds between collections of garbage

Receive = Callable[[bool], list[Up]]


class Link:
    """A socket to the client for one thread, identified by `name`."""

    def __init__(self, boot: Boot, name: str):
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.set_hwm(0)
        self._socket.set(zmq.IDENTITY, f"{boot.token}{name}".encode())
        self._socket.connect(boot.endpoint)

    def send(self, message: Down) -> None:
        self._socket.send(encode(message))

    def receive(self, wait: bool) -> list[Up]:
        """Messages that have arrived; if told to wait, not before there is one."""
        if wait:
            self._socket.poll()
        messages: list[Up] = []
        while self._socket.poll(0):
            payload = self._socket.recv()
            try:
                messages.append(decode_up(payload))
            except msgspec.DecodeError as error:
                log.warning("dropped a message that makes no sense: %s", error)
        return messages

    def close(self) -> None:
        """Return once everything sent is on its way, or after a second."""
        self._context.destroy(linger=1000)


class Records(logging.Handler):
    """Sends log records to the client, from any thread and until the process ends."""

    def emit(self, record: logging.LogRecord) -> None:
        logged = Logged(record.name, record.levelno, self.format(record))
        os.write(2, RECORD + msgspec.json.encode(logged) + b"\n")


class Pulse(threading.Thread):
    """Signs of life. It stops if this process does, and the client reads in it how long the step in
    hand has taken: between them, no way of hanging goes unseen."""

    def __init__(self, boot: Boot):
        super().__init__(name="weir-pulse", daemon=True)
        self._boot = boot
        self.loop: Loop | None = None

    def run(self) -> None:
        link = Link(self._boot, "pulse")
        while True:
            gone, _, _ = select.select([0], [], [], self._boot.silence)
            if gone and not os.read(0, 4096):  # the client closed the pipe, or is no more
                self._leave()
            if self.loop is not None:
                link.send(Deltas([], self.loop.report()))

    def _leave(self) -> None:
        """Remove the socket's folder, which a killed client could not, and exit."""
        kind, _, path = self._boot.endpoint.partition("://")
        if kind == "ipc":
            shutil.rmtree(Path(path).parent, ignore_errors=True)
        os._exit(0)


def make_engine(boot: Boot) -> Engine:
    """Call the factory with the configuration, decoded to the declared type of its parameter."""
    module, _, name = boot.factory.partition(":")
    factory = getattr(import_module(module), name)
    kind = typing.get_type_hints(factory).get("config", Any)
    return typing.cast(Engine, factory(msgspec.convert(boot.config, kind)))


def tidily(receive: Receive) -> Receive:
    """Collect garbage between steps, when idle if it can be: with ten thousand requests waiting a
    collection takes tens of milliseconds, and the interpreter would choose any step for it."""
    gc.disable()
    last = time.monotonic()

    def receive_tidily(wait: bool) -> list[Up]:
        nonlocal last
        if time.monotonic() - last > (TIDY_IDLE if wait else TIDY_BUSY):
            gc.collect()
            last = time.monotonic()
        return receive(wait)

    return receive_tidily


def serve(boot: Boot, link: Link) -> None:
    """Make the engine and run it until told to stop."""
    pulse = Pulse(boot)
    pulse.start()
    engine = make_engine(boot)
    link.send(Ready(engine.capacity.context, {**engine.info, "pid": os.getpid()}))
    pulse.loop = Loop(engine, tidily(link.receive), link.send)
    pulse.loop.run()
    engine.close()


def main() -> None:
    os.setpgrp()  # Ctrl-C is for the client to handle; a session would be weighed as one process
    os.dup2(2, 1)  # nothing but the client's own output belongs on standard output
    stdin = open(0, "rb", buffering=0, closefd=False)  # no byte beyond the line may be taken
    logging.basicConfig(handlers=[Records()], format="%(message)s")
    logging.getLogger("weir").setLevel(logging.INFO)
    boot = msgspec.json.decode(stdin.readline(), type=Boot)
    link, code = Link(boot, "loop"), 0
    try:
        serve(boot, link)
    except Exception as error:
        if isinstance(error, WeirError):
            message = str(error)
        else:
            message = f"the engine failed: {error!r}"
            traceback.print_exc()
        link.send(Fatal(message))
        code = 1
    link.close()
    sys.stderr.flush()
    os._exit(code)  # at once: what a library does at exit must not keep this process


if __name__ == "__main__":
    main()
