from collections.abc import Iterator

import pytest

from tests.bench.fake_server import Fake, fake_server


@pytest.fixture
def server() -> Iterator[Fake]:
    with fake_server() as fake:
        yield fake
