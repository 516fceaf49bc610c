"""A file of KV pages that outlives the engine: the store's coldest tier.

One record holds a page of all layers, so a move is one read or write. One thread writes, another
reads ahead. Records that are not written yet, or are read already, are served from memory, so no
step waits for a slow disk, and an unreadable page is found before a plan relies on it. If the disk
fails, one warning is logged and nothing more is read or written.

Knows bytes and page numbers, no tokens.
"""

import contextlib
import fcntl
import logging
import os
import shutil
import threading
import time
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np

from weir.cost.transfer import PENDING
from weir.errors import ConfigError
from weir.runtime import index
from weir.runtime.codec import Bytes, Codec
from weir.runtime.index import Index

log = logging.getLogger(__name__)

BATCH = 4 << 20
"""Most bytes of one read or write."""
STUCK = 10.0
"""Seconds without an answer after which the disk counts as failed."""
MOST = 4
"""`write` blocks while `MOST * PENDING` bytes wait to be written."""

T = TypeVar("T")


class Disk:
    """folder: created if missing; one engine may use it at a time. identity: pages saved under
    another one are ignored. pages, record: their number, and bytes of each; all of the space is
    allocated at once. codec: compresses records in the file; its work is done by the threads.

    `kept` is what the last engine passed to `save`; empty if its pages cannot be used. Raises
    `ConfigError` if the folder is in use, cannot be written or has too little space."""

    def __init__(
        self, folder: Path, identity: str, pages: int, record: int, codec: Codec | None = None
    ):
        self.folder, self.identity, self.codec = folder, identity, codec
        self.pages, self.record = pages, record
        self.stored = record if codec is None else codec.size  # bytes of a page in the file
        self.file = _open(folder, pages * self.stored)
        self.read_bytes, self.read_seconds = 0, 0.0
        self.sums: dict[int, int] = {}  # written page → checksum
        self.kept = self._recover()
        index.remove(folder)
        self.pending: dict[int, Bytes] = {}  # page → record to write, in order
        self.asked: dict[int, object] = {}  # page to read → a mark of this request, in order
        self.fetched: dict[int, Bytes] = {}  # page → record, until `read` takes it
        self.answered = time.monotonic()  # last read that succeeded, or first request since
        self.error: OSError | None = None
        self.closed = False
        self.changed = threading.Condition()
        self.threads = [
            threading.Thread(target=work, name="weir-disk", daemon=True)
            for work in (self._write_all, self._read_all)
        ]
        for thread in self.threads:
            thread.start()

    @property
    def failed(self) -> bool:
        """Whether the disk failed: what was written cannot be relied on."""
        return self.error is not None

    def accepts(self) -> bool:
        """Whether more may be written: not while `PENDING` bytes wait to be."""
        return self.error is None and len(self.pending) * self.record < PENDING

    def ready(self, pages: Sequence[int]) -> bool:
        """Whether all these pages are in memory, where they then stay until they are read. If not,
        the missing ones are read soon; the least recently asked for may be dropped for them."""
        with self.changed:
            missing = [p for p in pages if p not in self.fetched and p not in self.pending]
            if not self.asked:
                self.answered = time.monotonic()
            elif time.monotonic() - self.answered > STUCK and not self.failed:
                self._give_up(OSError(f"it has not answered for {STUCK:g} s"))
            if missing and self.error is None and len(self.asked) * self.record < PENDING:
                for page in missing:
                    self.asked.setdefault(page, object())
                self.changed.notify_all()
                while len(self.fetched) * self.record > PENDING:
                    del self.fetched[next(iter(self.fetched))]
            if not missing:  # `fetched` also keeps pending records, dropped once written
                for page in pages:
                    found = self.fetched.pop(page, None)
                    self.fetched[page] = self.pending.get(page, found)
            return not missing

    def write(self, pages: Sequence[int], records: Bytes) -> None:
        """Write records [n, record] to these pages, later; the caller must not change them."""
        with self.changed:
            self.changed.wait_for(
                lambda: self.error or len(self.pending) * self.record < MOST * PENDING
            )
            for page, record in zip(pages, records, strict=True):
                self.pending[page] = record
                if page in self.fetched:  # a later plan may rely on it
                    self.fetched[page] = record
                self.asked.pop(page, None)
            self.changed.notify_all()

    def read(self, pages: Sequence[int]) -> Bytes:
        """→ [n, record]. Raises OSError if a page that is not `ready` is unreadable or damaged."""
        out = np.empty((len(pages), self.record), np.uint8)
        for row, page in zip(out, pages, strict=True):
            with self.changed:
                found = self.fetched.pop(page, None)
                found = self.pending.get(page) if found is None else found
            if found is None:
                stored = self._pread(page)[0]
                if zlib.crc32(stored) != self.sums.get(page):
                    raise OSError(f"page {page} is damaged")
                found = self._decoded(stored)
            row[:] = found
        return out

    def forget(self, pages: Sequence[int]) -> None:
        """Drop these pages from what was read ahead, or was to be."""
        with self.changed:
            for page in pages:
                self.asked.pop(page, None)
                self.fetched.pop(page, None)

    def save(self, pages: Sequence[int], kept: bytes) -> None:
        """Finish all writes, then write an index of `pages` for the next engine, which finds
        `kept` again. Nothing may be written after."""
        with self.changed:
            self.changed.wait_for(lambda: self.error or not self.pending)
            if self.error is not None:
                raise self.error
        os.fsync(self.file)
        sums = {page: self.sums[page] for page in pages}
        index.save(self.folder, Index(self.identity, self.stored, sums, kept))

    def close(self) -> None:
        """Release the folder. May be called twice."""
        with self.changed:
            if self.closed:
                return
            self.closed = True
            self.changed.notify_all()
        for thread in self.threads:
            thread.join(STUCK)
        if not any(thread.is_alive() for thread in self.threads):  # else stuck in a system call
            os.close(self.file)

    # -- inside --------------------------------------------------------------------------------

    def _pread(self, first: int, count: int = 1) -> Bytes:
        """Read `count` consecutive pages → [count, stored]."""
        began, rows = time.perf_counter(), np.empty((count, self.stored), np.uint8)
        if os.preadv(self.file, [rows], first * self.stored) != rows.nbytes:
            raise OSError(f"page {first} of the KV cache on disk is cut short")
        self.read_seconds += time.perf_counter() - began
        self.read_bytes += count * self.record
        return rows

    def _decoded(self, row: Bytes) -> Bytes:
        return row if self.codec is None else self.codec.decode(row)

    def _next(self, queue: Mapping[int, T]) -> dict[int, T]:
        """Wait until a queue has pages, and copy the entries of the first page and those that
        follow it in the file, up to `BATCH` bytes. Empty once closed or failed."""
        with self.changed:
            self.changed.wait_for(lambda: queue or self.closed or self.error)
            if self.closed or self.error:
                return {}
            pages, most = [next(iter(queue))], max(1, BATCH // self.stored)
            while len(pages) < most and pages[-1] + 1 in queue:
                pages.append(pages[-1] + 1)
            return {page: queue[page] for page in pages}

    def _write_all(self) -> None:
        while taken := self._next(self.pending):
            pages = list(taken)
            encode = None if self.codec is None else self.codec.encode
            rows = [r if encode is None else encode(r) for r in taken.values()]
            try:
                done = os.pwritev(self.file, rows, pages[0] * self.stored)
                if done != len(rows) * self.stored:
                    raise OSError(f"wrote {done} of {len(rows) * self.stored} bytes")
            except OSError as error:
                return self._give_up(error)
            self.sums.update(zip(pages, map(zlib.crc32, rows), strict=True))
            with self.changed:
                for page, record in taken.items():
                    if self.pending.get(page) is record:
                        del self.pending[page]
                self.changed.notify_all()

    def _read_all(self) -> None:
        while taken := self._next(self.asked):
            pages = list(taken)
            try:
                rows = self._pread(pages[0], len(pages))
            except OSError as error:
                return self._give_up(error)
            sums = [zlib.crc32(row) for row in rows]
            records = [self._decoded(row) for row in rows]
            with self.changed:
                self.answered, damaged = time.monotonic(), []
                for page, sum, record in zip(pages, sums, records, strict=True):
                    if self.asked.get(page) is not taken[page]:  # written or forgotten meanwhile
                        continue
                    del self.asked[page]
                    if sum == self.sums.get(page):
                        self.fetched[page] = record
                    elif page in self.sums:  # else it was never written
                        damaged.append(page)
            if damaged:
                return self._give_up(OSError(f"page {damaged[0]} is damaged"))

    def _give_up(self, error: OSError) -> None:
        log.warning("%s: going on without the KV cache on disk: %s", self.folder, error)
        with self.changed:
            self.error = error
            self.changed.notify_all()

    def _recover(self) -> bytes:
        """What the last engine saved, if every page in its index has the right checksum. Otherwise
        empty, with a warning if there was an index."""
        try:
            found = index.read(self.folder, self.identity, self.stored)
            if found is None:
                return b""
            for page, sum in found.sums.items():
                if zlib.crc32(self._pread(page)[0]) != sum:
                    raise OSError(f"page {page} is damaged")
        except (ValueError, OSError) as why:
            log.warning("%s: starting with an empty KV cache on disk: %s", self.folder, why)
            return b""
        self.sums = found.sums
        return found.kept


def _open(folder: Path, size: int) -> int:
    """Open the file of pages, lock it and allocate `size` bytes."""
    path = folder / "kv.pages"
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        file = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o600)
    except OSError as error:
        raise ConfigError(f"--disk-cache {folder}: {error.strerror}") from None
    with contextlib.ExitStack() as stack:
        stack.callback(os.close, file)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ConfigError(f"--disk-cache {folder} is in use by another engine") from None
        try:
            if os.fstat(file).st_size != size:
                os.ftruncate(file, size)
            os.posix_fallocate(file, 0, size)
        except OSError as error:
            free = shutil.disk_usage(folder).free
            raise ConfigError(
                f"--disk-cache {folder}: {size / 2**30:.1f} GiB cannot be had "
                f"({error.strerror}; {free / 2**30:.1f} GiB are free): "
                "lower --disk-cache-size"
            ) from None
        stack.pop_all()
    return file
