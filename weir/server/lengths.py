"""Writes down how long answers are, where the operator asks for it: what a ranker is trained on."""

from weir.client import Client, Finished
from weir.client.expect import Reader
from weir.ranker.log import LengthLog


class LengthListener:
    """Add an instance to `client.listeners`."""

    def __init__(self, client: Client, log: LengthLog):
        self._reader = Reader(client.text)
        self._model = client.model.name
        self._log = log

    def __call__(self, finished: Finished) -> None:
        if (answered := self._reader.answered(finished)) is not None:
            self._log.add(answered, self._model)
