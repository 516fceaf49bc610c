from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.bench.fake_server import Fake, fake_server
from weir import hub


@pytest.fixture
def server() -> Iterator[Fake]:
    with fake_server() as fake:
        yield fake


@pytest.fixture
def model() -> Path:
    """The embedded model, where it has been fetched before: tests fetch nothing."""
    path = hub.cache_folder() / "smollm2-135m" / hub.EMBEDDED["smollm2-135m"].file
    if not path.exists():
        pytest.skip("needs the embedded model: run `weir pull smollm2-135m`")
    return path
