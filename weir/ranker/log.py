"""A file of prompts and lengths of answers, written as they come, that a ranker is trained on."""

import json
from pathlib import Path
from typing import NamedTuple

from weir.errors import ConfigError

RECENT = 1 << 23  # bytes at the end of a file that are looked at for answers


class Answered(NamedTuple):
    """cut: by a limit of tokens; the answer would have been longer."""

    prompt: str
    tokens: float  # the mean over several answers
    cut: bool = False


class LengthLog:
    """Adds lines of JSON to a file, which may be moved away at any time. Raises `ConfigError` at
    the start for one that cannot be written."""

    def __init__(self, path: Path):
        self.path = path
        self._write("")

    def add(self, answered: Answered, model: str, source: str = "") -> None:
        row = {"prompt": answered.prompt, "output_tokens": answered.tokens, "cut": answered.cut}
        self._write(json.dumps({**row, "model": model, "source": source}) + "\n")

    def latest(self, model: str, most: int) -> list[Answered]:
        """The last answers of a model, the latest at the end. What is no such line is left out.
        Raises `ConfigError`."""
        try:
            with self.path.open("rb") as file:
                file.seek(max(0, self.path.stat().st_size - RECENT))
                lines = file.read().splitlines()
        except OSError as error:
            raise ConfigError(f"{self.path}: cannot be read: {error.strerror}") from None
        found = [answered for line in lines if (answered := _answered(line, model)) is not None]
        return found[-most:] if most else []

    def _write(self, text: str) -> None:
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(text)
        except OSError as error:
            raise ConfigError(f"{self.path}: cannot be written: {error.strerror}") from None


def _answered(line: bytes, model: str) -> Answered | None:
    try:
        row = json.loads(line)
        if row["model"] == model:
            return Answered(str(row["prompt"]), float(row["output_tokens"]), bool(row.get("cut")))
    except (ValueError, TypeError, LookupError):  # cut off, or not ours
        pass
    return None
