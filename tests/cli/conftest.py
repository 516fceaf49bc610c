from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.bench.fake_server import Fake, fake_server
from tests.embedded import find


@pytest.fixture
def server() -> Iterator[Fake]:
    with fake_server() as fake:
        yield fake


@pytest.fixture
def model() -> Path:
    return find()
