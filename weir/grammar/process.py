"""A Python child process that can be killed, and the messages to and from it.

In the child, standard input is the socket. Messages are bytes, each preceded by its length.
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
    """In the child: the stream to its parent."""
    os.dup2(2, 1)  # what libraries print goes to standard error
    return socket.socket(fileno=os.dup(0)).makefile("rwb")


class Process:
    """`python -m module`, started on a thread with this process's module path. Only `receive`
    waits for it. shared: descriptors it inherits."""

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
        with theirs:  # closed here, so that the stream ends with the child
            self._process = subprocess.Popen(
                (sys.executable, "-P", "-m", module),
                stdin=theirs.fileno(),
                pass_fds=shared,
                env=os.environ | {"PYTHONPATH": path},
                process_group=0,  # the kernel would share cores by session, whatever the priority
            )

    def queue(self, message: bytes) -> None:
        """Send a message with the next `flush`."""
        self._out += LENGTH.pack(len(message)) + message

    def send(self, message: bytes) -> None:
        """Send a message without blocking. `receive` sends what remains."""
        self.queue(message)
        self.flush()

    def receive(self, seconds: float = 0.0) -> list[bytes]:
        """The messages that have arrived; waits at most `seconds`, to the millisecond, for an event
        on the socket. Raises OSError if the process has ended."""
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
            self._out.clear()  # it has ended; `receive` will raise

    def _whole(self) -> list[bytes]:
        """Remove and return the complete messages."""
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
        """Kill the process. A thread waits for its end."""
        threading.Thread(target=self._end).start()

    def _end(self) -> None:
        self._starting.join()
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self._socket.close()
