"""A file of prompts and lengths of answers, written as they come, that a ranker is trained on."""

from __future__ import annotations

import json
from pathlib import Path

from weir.errors import ConfigError


class LengthLog:
    """Adds to a file of JSON lines; each is whole once written. Raises `ConfigError` at the start
    for a file that cannot be written."""

    def __init__(self, path: Path):
        try:
            self._file = path.open("a", encoding="utf-8", buffering=1)
        except OSError as error:
            raise ConfigError(f"{path}: cannot be written: {error.strerror}") from None

    def add(self, prompt: str, tokens: float, model: str, source: str = "") -> None:
        row = {"prompt": prompt, "output_tokens": tokens, "model": model, "source": source}
        self._file.write(json.dumps(row) + "\n")
