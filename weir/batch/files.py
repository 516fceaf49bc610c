"""The input and output files of a batch, and how an interrupted run is resumed.

Every line of the output names its line of the input. Nothing here sends requests.
"""

import fcntl
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import msgspec
from msgspec import Struct

from weir.errors import ConfigError


class Line(Struct):
    """One line of the input."""

    custom_id: str
    url: str
    body: dict[str, Any]
    method: str = "POST"


class LineError(Struct):
    """Why a line was not sent as a request."""

    code: str
    message: str


class Response(Struct):
    """The HTTP response to a line. body: decoded JSON, or text if it is none."""

    status_code: int
    request_id: str
    body: Any


class Answer(Struct):
    """One line of the output. `id` is "line-N", N the number of the line of the input."""

    id: str
    custom_id: str | None = None
    response: Response | None = None
    error: LineError | None = None

    @property
    def failed(self) -> bool:
        return self.response is None or self.response.status_code >= 400


def numbered(lines: IO[bytes]) -> Iterator[tuple[int, bytes]]:
    """Lines that are not blank, with their numbers from 1."""
    return ((n, line) for n, line in enumerate(lines, 1) if line.strip())


class _Identity(Struct):
    custom_id: str


def identity(raw: bytes) -> str | None:
    """The custom_id of a line of the input, if it can be read."""
    try:
        return msgspec.json.decode(raw, type=_Identity).custom_id
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


def identities(source: Path) -> dict[int, str | None]:
    """Number → custom_id of every line that is not blank. Raises `ConfigError`."""
    try:
        with open(source, "rb") as lines:
            return {number: identity(raw) for number, raw in numbered(lines)}
    except OSError as error:
        raise ConfigError(f"{source} cannot be read: {error.strerror}") from None


def opened(target: Path) -> IO[bytes]:
    """The output, locked for this run. Raises `ConfigError` if it cannot be."""
    try:
        output = open(target, "a+b")
        fcntl.flock(output, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        output.close()
        raise ConfigError(f"another run is writing to {target}: wait for it") from None
    except OSError as error:
        raise ConfigError(f"{target} cannot be written: {error.strerror}") from None
    return output


def answered(output: IO[bytes], target: Path) -> tuple[dict[int, str | None], int]:
    """Number → custom_id of the lines answered by earlier runs, and how many of them failed. An
    incomplete last line is cut off. Raises `ConfigError` if the file holds anything else."""
    done: dict[int, str | None] = {}
    whole = failed = 0
    output.seek(0)
    for raw in output:
        if not raw.endswith(b"\n"):
            break
        try:
            answer = msgspec.json.decode(raw, type=Answer)
            number = int(answer.id.removeprefix("line-"))
        except (msgspec.DecodeError, ValueError):
            raise ConfigError(
                f"{target} holds something other than answers of a batch: choose another output"
            ) from None
        done[number] = answer.custom_id
        failed += answer.failed
        whole += len(raw)
    output.truncate(whole)
    return done, failed


def check_resumable(target: Path, ids: dict[int, str | None], done: dict[int, str | None]) -> None:
    """Raise `ConfigError` if the answers in `target` belong to another input."""
    for number, custom_id in done.items():
        if number not in ids or ids[number] != custom_id:
            raise ConfigError(
                f"{target} answers {custom_id!r} in line {number}, which the input does not have "
                "there: choose another output, or the input that it belongs to"
            )
