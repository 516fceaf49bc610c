"""A file of prompts and lengths of answers, written as they come, that a ranker is trained on."""

import json
from pathlib import Path

from weir.errors import ConfigError


class LengthLog:
    """Adds lines of JSON to a file, which may be moved away at any time. Raises `ConfigError` at
    the start for one that cannot be written."""

    def __init__(self, path: Path):
        self.path = path
        self._write("")

    def add(self, prompt: str, tokens: float, model: str, source: str = "") -> None:
        row = {"prompt": prompt, "output_tokens": tokens, "model": model, "source": source}
        self._write(json.dumps(row) + "\n")

    def _write(self, text: str) -> None:
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(text)
        except OSError as error:
            raise ConfigError(f"{self.path}: cannot be written: {error.strerror}") from None
