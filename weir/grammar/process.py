"""A process of Python's beside this one that can be killed, and the messages between the two.

Over there its socket is standard input. Messages are bytes, each behind its length. Knows no
grammar.
"""

import os
import select
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Collection
from io import BufferedIOBase

LENGTH = struct.Struct("<I")
PART = 1 << 16


def read(stream: BufferedIOBase) -> bytes:
    """One message; empty at the end of the stream."""
    head = stream.read(LENGTH.size)
    return stream.read(LENGTH.unpack(head)[0]) if len(head) == LENGTH.size else b""


def write(stream: BufferedIOBase, message: bytes) -> None:
    stream.write(LENGTH.pack(len(message)) + message)
    stream.flush()


def parent() -> BufferedIOBase:
    """In such a process: the stream to the one that started it."""
    os.dup2(2, 1)  # what a library prints belongs there
    return socket.socket(fileno=os.dup(0)).makefile("rwb")


class Process:
    """`python -m module`, started on a thread, with the modules that this process has. Nothing
    here waits for it but `receive`. shared: descriptors it has, too."""

    def __init__(self, module: str, shared: Collection[int] = ()):
        self._socket, theirs = socket.socketpair()
        self._socket.setblocking(False)
        self._poll = select.poll()
        self._in, self._out = bytearray(), bytearray()
        self._process: subprocess.Popen[bytes] | None = None
        self._starting = threading.Thread(target=self._start, args=(module, shared, theirs))
        self._starting.start()

    def _start(self, module: str, shared: Collection[int], theirs: socket.socket) -> None:
        path = os.pathsep.join(folder or os.getcwd() for folder in sys.path)
        with theirs:  # closed here, its end is the end of the process
            self._process = subprocess.Popen(
                (sys.executable, "-P", "-m", module),
                stdin=theirs.fileno(),
                pass_fds=shared,
                env=os.environ | {"PYTHONPATH": path},
                process_group=0,  # a session would be weighed as one process, whatever its priority
            )

    def queue(self, message: bytes) -> None:
        """Have a message go out with the next `flush`."""
        self._out += LENGTH.pack(len(message)) + message

    def send(self, message: bytes) -> None:
        """Send a message. What does not go out at once does in `receive`."""
        self.queue(message)
        self.flush()

    def receive(self, seconds: float = 0.0) -> list[bytes]:
        """Messages that have come; waits so long, to the millisecond, for anything to happen.
        Raises OSError if the process has ended."""
        if seconds > 0:
            events = select.POLLIN | (select.POLLOUT if self._out else 0)
            self._poll.register(self._socket, events)
            self._poll.poll(seconds * 1e3)
        self.flush()
        try:
            while part := self._socket.recv(PART):
                self._in += part
        except BlockingIOError:
            return self._whole()
        if messages := self._whole():
            return messages
        raise OSError("the process ended")

    def flush(self) -> None:
        try:
            while self._out:
                del self._out[: self._socket.send(self._out)]
        except BlockingIOError:
            pass
        except OSError:
            self._out.clear()  # it has ended, as `receive` will find

    def _whole(self) -> list[bytes]:
        """Take the messages that are complete."""
        messages, at, end = [], 0, len(self._in)
        while end - at >= LENGTH.size:
            start = at + LENGTH.size
            length = LENGTH.unpack_from(self._in, at)[0]
            if end - start < length:
                break
            at = start + length
            messages.append(bytes(self._in[start:at]))
        del self._in[:at]
        return messages

    def stop(self) -> None:
        """Kill it; whoever clears up after it is a thread."""
        threading.Thread(target=self._end).start()

    def _end(self) -> None:
        self._starting.join()
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self._socket.close()
