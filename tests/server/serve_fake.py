"""A server process around the fake engine, for tests of its signals: `python -m` this."""

import asyncio
import json
import sys

from tests import fakes
from weir.client import Remote
from weir.config import Config
from weir.server import logs
from weir.server.main import listen, run

settings = json.loads(sys.argv[1])
config = Config(model="fake", **settings["config"])
logs.configure("info", "json")
listening = listen("127.0.0.1", 0)
print(listening.getsockname()[1], flush=True)
client = Remote(
    settings["engine"],
    fakes.text(),
    ["fake"],
    factory=settings.get("factory", "tests.fakes:engine"),
)
asyncio.run(run(client, config, listening))
