"""Files of rankers, whatever is in them: arrays, and the name of what can read them."""

import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.resources import as_file, files
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from weir.errors import ConfigError

SHIPPED = files("weir") / "data" / "ranker.npz"
KINDS = {"light": "weir.ranker.light", "transformer": "weir.ranker.transformer"}


class Read(NamedTuple):
    """What a ranker makes of prompts. expected: tokens of each answer, [P]. states: where they lie,
    [P, K]; exp(-apart ** 2) says how alike two are."""

    expected: NDArray[np.float32]
    states: NDArray[np.float32]


class Ranker:
    """A prompt's score is higher, the longer the answer. scores, lengths: the quantiles of scores
    and of answers in tokens over the same prompts, both ascending, [Q]. about: how it was made."""

    scores: NDArray[np.float32]
    lengths: NDArray[np.float32]
    about: str

    def score(self, prompts: Sequence[str]) -> NDArray[np.float32]:
        """[P]."""
        return self._each(prompts)[0]

    def read(self, prompts: Sequence[str]) -> Read:
        scores, states = self._each(prompts)
        return Read(np.interp(scores, self.scores, self.lengths).astype(np.float32), states)

    def _each(self, prompts: Sequence[str]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Scores [P] and states as `Read` has them."""
        raise NotImplementedError

    def save(self, path: Path) -> None:
        """Raises `ConfigError`."""
        raise NotImplementedError


def save(path: Path, format: str, arrays: Mapping[str, Any]) -> None:
    """Raises `ConfigError`."""
    with writing(path) as file:
        np.savez_compressed(file, format=np.asarray(format), **arrays)


@contextmanager
def writing(path: Path, mode: str = "wb") -> Iterator[IO[bytes]]:
    """A file to write to. Raises `ConfigError` where that fails: opened with "ab" and left alone,
    before hours of training."""
    try:
        with path.open(mode) as file:
            yield file
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror}") from None


def load(path: Path) -> Ranker:
    """Raises `ConfigError` for what is no ranker, or one of another version, and for a damaged
    one."""
    arrays = _arrays(path)
    found = str(arrays.pop("format", ""))
    for kind, name in KINDS.items():
        if found.startswith(f"weir {kind} ranker"):
            module: Any = import_module(name)  # PyTorch only where a ranker needs it
            if found != module.FORMAT:
                raise ConfigError(
                    f"{path}: a {found!r}, and this is {module.FORMAT!r}: "
                    "train it again with `weir rank train`"
                )
            try:
                _check(arrays)
                made: Ranker = module.restore(arrays)
            except KeyError as error:
                raise ConfigError(f"{path}: damaged: {error} is missing") from None
            except (IndexError, ValueError, TypeError, RuntimeError) as error:
                reason = str(error).strip().splitlines()[-1].strip()
                raise ConfigError(f"{path}: damaged: {reason}") from None
            except ConfigError as error:
                raise ConfigError(f"{path}: {error}") from None
            return made
    raise ConfigError(f"{path}: not a ranker: give a file that `weir rank train` wrote")


def _arrays(path: Path) -> dict[str, Any]:
    """What is in a file; nothing, if it is not one of arrays."""
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            return dict(file)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror or error}") from None
    except (ValueError, TypeError, EOFError, MemoryError, RuntimeError):  # as damage shows
        return {}
    except (zipfile.BadZipFile, zlib.error):
        raise ConfigError(f"{path}: damaged, or not a ranker") from None


def _check(arrays: Mapping[str, Any]) -> None:
    """Raise a `ValueError` for numbers that are none and for quantiles that do not rise."""
    for name, array in arrays.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise ValueError(f"{name} holds what is not a number")
    scores, lengths = arrays["scores"], arrays["lengths"]
    if scores.ndim != 1 or not scores.size or scores.shape != lengths.shape:
        raise ValueError("scores and lengths are no quantiles")
    if (np.diff(scores) < 0).any() or (np.diff(lengths) < 0).any():
        raise ValueError("scores and lengths do not rise")


def shipped() -> Ranker:
    """The ranker that comes with Weir (docs/ranker.md)."""
    with as_file(SHIPPED) as path:
        return load(path)
