"""A command's own server: ready, guarded, and gone afterwards, whatever happens."""

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.waiting import alive, until
from weir.bench.private import last_words, private, stop
from weir.errors import ConfigError
from weir.http import Http, HttpError


def test_a_server_that_cannot_start_says_why() -> None:
    with pytest.raises(ConfigError, match=r"did not start: weir serve: .*no model '/absent'"):
        with private("/absent"):
            pytest.fail("there is no such model")


def test_a_server_that_is_never_ready_is_given_up(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The interpreter stands in for a server that hangs, and for what that has started."""
    hung = tmp_path / "hung"
    hung.write_text('#!/bin/sh\nsleep 600 &\necho $! > "$0.child"\nexec sleep 600\n')
    hung.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(hung))
    child = tmp_path / "hung.child"

    def wait(seconds: float) -> None:
        until(lambda: child.exists() and child.read_text().endswith("\n"))

    with pytest.raises(ConfigError, match="did not start"), private("m", (), {}, wait, 0.3):
        pytest.fail("it is not ready")
    until(lambda: not alive(int(child.read_text())))


def test_a_process_that_ignores_being_asked_is_killed() -> None:
    script = "import signal, time; signal.signal(15, 1); print(1, flush=True); time.sleep(600)"
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, start_new_session=True
    )
    assert process.stdout is not None
    with process.stdout:
        process.stdout.readline()
    stop(process, patience=0.1)
    assert process.returncode == -signal.SIGKILL


def test_last_words() -> None:
    assert last_words(b"a\n\nb\n\xff\n", 2) == "b\n�"
    assert last_words(b" \n") == "it said nothing"


def test_a_real_server_is_guarded_by_a_key_and_leaves_nothing(model: Path) -> None:
    async def refused(url: str) -> int:
        with pytest.raises(HttpError) as caught:
            await Http(url).get("/v1/models")
        return caught.value.status

    environ = {"WEIR_API_KEY": "another", "WEIR_PORT": "1"}
    with private(str(model), ["--max-num-seqs", "2"], environ) as server:
        assert asyncio.run(refused(server.url)) == 401
        listed = asyncio.run(Http(server.url, server.headers).get("/v1/models"))
        assert str(model).encode() in listed
        pid = server.process.pid
    assert not alive(pid)
    with pytest.raises(ProcessLookupError):
        os.killpg(pid, 0)
