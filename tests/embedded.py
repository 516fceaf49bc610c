"""The embedded models, where they have been fetched before: tests fetch nothing."""

import os
from pathlib import Path

import pytest

from weir.folders import cache_folder
from weir.hub import EMBEDDED


def find(name: str = "smollm2-135m") -> Path:
    """The file of a model, in $WEIR_MODELS or the user's cache; else the test is skipped."""
    for folder in (os.environ.get("WEIR_MODELS"), cache_folder("models")):
        if folder and (path := Path(folder, name, EMBEDDED[name].file)).is_file():
            return path
    pytest.skip(f"{name} is not here: run `weir pull {name}`, or set WEIR_MODELS")
