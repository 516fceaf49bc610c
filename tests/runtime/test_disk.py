"""The file of KV pages: what is written is read, survives an engine, and is not trusted blindly."""

import logging
import os
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.runtime.drive import CPU
from weir.core import Move, Page
from weir.errors import ConfigError
from weir.runtime import disk as module
from weir.runtime.disk import Disk
from weir.runtime.index import identity
from weir.runtime.store import Store, page_bytes
from weir.spec import AttentionSpec

PAGES, RECORD = 16, 96


def rows(*marks: int) -> np.ndarray:
    return np.array([[mark] * RECORD for mark in marks], np.uint8)


def made(folder: Path, same: str = "me", pages: int = PAGES, record: int = RECORD) -> Disk:
    return Disk(folder, same, pages, record)


def kept(folder: Path, pages: int = PAGES) -> bytes:
    """What an engine that ends without saving would have found."""
    disk = made(folder, pages=pages)
    disk.close()
    return disk.kept


def test_what_is_written_is_read_however_often_it_changes(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "PENDING", RECORD)  # so that writers wait
    disk = made(tmp_path)
    for round in range(1, 60):
        disk.write([5, 2, 9], rows(round, round + 60, round + 120))
        assert (disk.read([9, 5, 2]) == rows(round + 120, round, round + 60)).all()
    disk.close()
    disk.close()


def soon(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "it does not come"
        time.sleep(0.001)


def test_pages_are_read_ahead_and_what_is_written_meanwhile_counts(tmp_path):
    disk = made(tmp_path)
    disk.write([1, 2, 3], rows(10, 20, 30))
    soon(lambda: not disk.pending)
    assert not disk.ready([1, 2]) and disk.asked
    soon(lambda: disk.ready([1, 2]))
    assert disk.read_bytes == 2 * RECORD and disk.read_seconds > 0
    disk.write([2], rows(21))
    assert (disk.read([1, 2]) == rows(10, 21)).all()
    assert not disk.fetched
    assert not disk.ready([9])  # nothing was written there yet: its record is on its way
    soon(lambda: not disk.asked)
    assert not disk.failed and not disk.fetched
    disk.close()


def test_a_late_read_is_not_taken_for_what_was_asked_since(tmp_path, monkeypatch):
    disk, begun, gate, real = made(tmp_path), threading.Event(), threading.Event(), os.preadv

    def held(*arguments: object) -> int:
        count = real(*arguments)
        begun.set()
        gate.wait(60)
        return count

    disk.write([3], rows(30))
    soon(lambda: not disk.pending)
    monkeypatch.setattr(module.os, "preadv", held)
    assert not disk.ready([3]) and begun.wait(60)
    disk.write([3], rows(31))
    soon(lambda: not disk.pending)
    assert not disk.ready([3])
    gate.set()
    soon(lambda: disk.ready([3]))
    assert (disk.read([3]) == rows(31)).all() and not disk.failed
    disk.close()


def test_what_is_at_hand_stays_so_until_it_is_read(tmp_path, monkeypatch):
    """Also if it was still to be written, or is written anew, and the disk fails after that."""
    disk, gate, real = made(tmp_path), threading.Event(), os.pwritev

    def held(*arguments: object) -> int:
        gate.wait(60)
        return real(*arguments)

    monkeypatch.setattr(module.os, "pwritev", held)
    disk.write([1, 2], rows(10, 20))
    assert disk.ready([1, 2])
    disk.write([2], rows(21))
    gate.set()
    soon(lambda: not disk.pending)
    monkeypatch.setattr(module.os, "preadv", broken)
    assert (disk.read([1, 2]) == rows(10, 21)).all() and not disk.fetched
    disk.close()


def test_what_nobody_waits_for_does_not_stay_in_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "PENDING", 4 * RECORD)
    disk = made(tmp_path)
    disk.write(range(PAGES), rows(*range(PAGES)))
    soon(lambda: not disk.pending)
    for page in range(PAGES):  # each asked for once more than needed, none of them read
        soon(lambda page=page: disk.ready([page]))
        assert disk.ready([page]) and len(disk.fetched) <= 5
    disk.forget([PAGES - 1])
    assert PAGES - 1 not in disk.fetched and PAGES - 2 in disk.fetched
    assert not disk.ready([0])
    disk.forget([0])  # read by now, or not
    assert 0 not in disk.asked and 0 not in disk.fetched
    assert (disk.read([0, PAGES - 1]) == rows(0, PAGES - 1)).all()  # later, but the same
    os.pwrite(disk.file, b"!", RECORD)
    disk.forget([1])
    with pytest.raises(OSError, match="page 1 is damaged"):
        disk.read([1])
    disk.close()


def broken(*_: object) -> int:
    raise OSError(5, "Input/output error")


@pytest.mark.parametrize("how", ["error", "damage"])
def test_a_page_that_cannot_be_read_is_known_before_it_is_needed(
    tmp_path, monkeypatch, caplog, how
):
    disk = made(tmp_path)
    disk.write([1, 2], rows(10, 20))
    soon(lambda: not disk.pending)
    soon(lambda: disk.ready([1]))
    if how == "error":
        monkeypatch.setattr(module.os, "preadv", broken)
    else:
        os.pwrite(disk.file, b"!", 2 * RECORD)
    assert not disk.ready([2])
    soon(lambda: disk.failed)
    assert not disk.ready([2]) and not disk.accepts()
    assert (disk.read([1]) == rows(10)).all()  # was there before
    assert caplog.text.count("going on without") == 1
    disk.close()


def test_what_was_saved_is_there_for_the_next_engine_once(tmp_path):
    disk = made(tmp_path)
    assert disk.kept == b""
    disk.write([3, 4, 5], rows(30, 40, 50))
    disk.save([3, 5], b"words")
    disk.close()
    again = made(tmp_path)
    assert again.kept == b"words" and (again.read([3, 5]) == rows(30, 50)).all()
    again.close()  # without saving: its pages may have changed since
    assert kept(tmp_path) == b""


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        ("page", "page 5 is damaged"),
        ("short", "cut short|damaged"),
        ("index", "index is damaged"),
        ("magic", "not one of this version"),
        ("identity", "another model"),
        ("record", "another model"),
        ("torn", "index is damaged"),
    ],
)
def test_torn_and_foreign_files_are_ignored_with_one_warning(tmp_path, caplog, harm, said):
    disk = made(tmp_path)
    disk.write([3, 5], rows(30, 50))
    disk.save([3, 5], b"words")
    disk.close()
    pages, index = tmp_path / "kv.pages", tmp_path / "kv.index"
    content, known = bytearray(pages.read_bytes()), bytearray(index.read_bytes())
    if harm == "page":
        content[5 * RECORD + 7] ^= 1
    elif harm == "short":
        content = content[: 5 * RECORD + 10]
    elif harm == "index":
        known[-1] ^= 1
    elif harm == "magic":
        known[0] ^= 1
    elif harm == "torn":
        known = known[:-3]
    pages.write_bytes(content)
    index.write_bytes(known)
    with caplog.at_level(logging.WARNING):
        again = made(
            tmp_path,
            "you" if harm == "identity" else "me",
            record=RECORD * 2 if harm == "record" else RECORD,
        )
    assert again.kept == b"" and len(caplog.records) == 1
    assert caplog.records[0].getMessage().count(str(tmp_path)) == 1
    assert re.search(said, caplog.text)
    again.write([0], np.zeros((1, again.record), np.uint8))  # and it works
    again.close()


def test_a_smaller_file_keeps_nothing_that_lay_beyond(tmp_path, caplog):
    disk = made(tmp_path)
    disk.write([1, PAGES - 1], rows(1, 2))
    disk.save([1, PAGES - 1], b"words")
    disk.close()
    assert kept(tmp_path, PAGES // 2) == b""
    assert "cut short" in caplog.text


def test_one_engine_at_a_time_and_bad_folders(tmp_path):
    disk = made(tmp_path)
    with pytest.raises(ConfigError, match="in use by another engine"):
        made(tmp_path)
    disk.close()
    made(tmp_path).close()
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="--disk-cache"):
        made(tmp_path / "file")
    with pytest.raises(ConfigError, match="lower --disk-cache-size"):
        made(tmp_path / "huge", pages=2**50)


def test_a_disk_that_fails_says_so_and_saves_nothing(tmp_path, monkeypatch):
    disk = made(tmp_path)

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module.os, "pwritev", full)
    disk.write([1], rows(1))
    with pytest.raises(OSError, match="No space left"):
        disk.save([1], b"words")
    assert disk.failed and not disk.accepts()
    disk.write([1], rows(1))  # lost, and nobody waits
    disk.close()
    assert not (tmp_path / "kv.index").exists()


def test_the_identity_follows_the_weights(tmp_path):
    file = tmp_path / "w.safetensors"
    file.write_bytes(b"1")
    first = identity(tmp_path, 4, "float32")
    assert first == identity(tmp_path, 4, "float32") != identity(tmp_path, 8, "float32")
    file.write_bytes(b"12")
    assert identity(tmp_path, 4, "float32") != first


LAYERS = [AttentionSpec(4, 2, 8, scale=1.0), AttentionSpec(4, 1, 16, scale=1.0)]
SIZES = {1: 4, 2: 6}
PLACES = [Page(tier, index) for tier, size in SIZES.items() for index in range(size)]


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from([torch.float32, torch.bfloat16]),
    st.lists(st.tuples(st.sampled_from(PLACES), st.sampled_from(PLACES)), max_size=12),
)
def test_pages_keep_their_content_through_the_disk(tmp_path_factory, dtype, pairs):
    record = page_bytes(LAYERS, 4, dtype)
    disk = Disk(tmp_path_factory.mktemp("disk"), "me", SIZES[2], record)
    store = Store(LAYERS, 4, SIZES, {1: CPU}, dtype, disk)
    want = {}
    for page in PLACES[:4]:
        for kv in store.kv[1]:
            kv[page.index] = torch.randn(kv.shape[1:]).to(dtype)
        want[page] = [kv[page.index].clone() for kv in store.kv[1]]
    first = [Move(Page(1, index % 4), Page(2, index)) for index in range(SIZES[2])]
    store.move([*first, *(Move(src, dst) for src, dst in pairs)])
    for src, dst in [*first, *pairs]:
        want[dst] = want[src]
    store.move([])
    for index in range(4):
        for kv, content in zip(store.kv[1], want[Page(1, index)], strict=True):
            assert torch.equal(kv[index], content)
    for index in range(SIZES[2]):
        store.move([Move(Page(2, index), Page(1, 0))])
        for kv, content in zip(store.kv[1], want[Page(2, index)], strict=True):
            assert torch.equal(kv[0], content)
    disk.close()
