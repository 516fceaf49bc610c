"""Files of JSON objects and of rows, as models and data sets come: JSON lines and CSV are gzipped
or not."""

import csv
import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from weir.errors import ConfigError


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file; empty where there is no such file. Raises `ConfigError`."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read {path}: {error}") from None
    if not isinstance(value, dict):
        raise ConfigError(f"{path} must hold a JSON object")
    return value


def open_text(path: Path) -> Any:
    """The file as text, unzipped if it is zipped. Raises `ConfigError`."""
    try:
        with path.open("rb") as file:
            zipped = file.read(2) == b"\x1f\x8b"
        return (gzip.open if zipped else open)(path, "rt", encoding="utf-8", newline="")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None


def read_rows(path: Path, count: int | None = None) -> Iterator[dict[str, Any]]:
    """The first `count` objects of a file of JSON lines. Raises `ConfigError`."""
    with open_text(path) as lines:
        for number, line in enumerate(filter(str.strip, lines), 1):
            if count is not None and number > count:
                return
            try:
                row = json.loads(line)
            except ValueError:
                row = None
            if not isinstance(row, dict):
                raise ConfigError(f"{path}: line {number} is not a JSON object")
            yield row


def read_table(path: Path) -> Iterator[dict[str, str]]:
    """The rows of a CSV with a header. Raises `ConfigError`."""
    with open_text(path) as lines:
        yield from csv.DictReader(lines)


def find_rows(folder: Path, name: str) -> Path:
    """`name`, gzipped or not, in a folder. Raises `ConfigError`."""
    for path in (folder / f"{name}.gz", folder / name):
        if path.exists():
            return path
    raise ConfigError(f"{folder}: holds no {name} or {name}.gz")
