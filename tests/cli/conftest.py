import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.bench.fake_server import Fake, fake_server
from weir.folders import cache_folder


@pytest.fixture
def server() -> Iterator[Fake]:
    with fake_server() as fake:
        yield fake


@pytest.fixture
def model() -> Path:
    """The embedded model, where it has been fetched before: tests fetch nothing."""
    folders = [Path(os.environ.get("WEIR_MODELS", "/nonexistent")), cache_folder("models")]
    for folder in folders:
        for path in (folder / "smollm2-135m").glob("*.gguf"):
            return path
    pytest.skip("needs the embedded model: run `weir pull smollm2-135m`, or set WEIR_MODELS")
