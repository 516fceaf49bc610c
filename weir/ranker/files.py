"""Files of rankers, whatever is in them: arrays, and the name of what can read them."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from weir.errors import ConfigError

SHIPPED = files("weir") / "data" / "ranker.npz"
KINDS = {"light": "weir.ranker.light", "transformer": "weir.ranker.transformer"}


class Ranker(Protocol):
    """A prompt's score is higher, the longer the answer. about: how it was made."""

    about: str

    def score(self, prompts: Sequence[str]) -> NDArray[np.float32]:
        """[P]."""
        ...

    def predict(self, prompts: Sequence[str]) -> list[float]:
        """Tokens expected of each answer."""
        ...

    def save(self, path: Path) -> None:
        """Raises `ConfigError`."""
        ...


def save(path: Path, format: str, arrays: Mapping[str, Any]) -> None:
    """Raises `ConfigError`."""
    try:
        with path.open("wb") as file:
            np.savez_compressed(file, format=np.asarray(format), **arrays)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror}") from None


def load(path: Path) -> Ranker:
    """Raises `ConfigError` for what is no ranker, or one of another version."""
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            arrays: dict[str, Any] = dict(file)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror or error}") from None
    except (ValueError, EOFError, zipfile.BadZipFile):
        arrays = {}
    found = str(arrays.pop("format", ""))
    for kind, name in KINDS.items():
        if found.startswith(f"weir {kind} ranker"):
            module: Any = import_module(name)  # PyTorch only where a ranker needs it
            if found != module.FORMAT:
                raise ConfigError(
                    f"{path}: a {found!r}, and this is {module.FORMAT!r}: "
                    "train it again with `weir rank train`"
                )
            made: Ranker = module.restore(path, arrays)
            return made
    raise ConfigError(f"{path}: not a ranker: give a file that `weir rank train` wrote")


def shipped() -> Ranker:
    """The ranker that comes with Weir (docs/ranker.md)."""
    with as_file(SHIPPED) as path:
        return load(path)
