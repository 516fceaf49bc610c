"""Writes down how long answers are, where the operator asks for it: what a ranker is trained on."""

from weir.client import Client, Finished
from weir.client.expect import Reader
from weir.ranker.log import LengthLog


class LengthListener:
    """Add an instance to `client.listeners`. Requests that failed or were aborted are left out; of
    several choices it is the mean that counts."""

    def __init__(self, client: Client, log: LengthLog):
        self._reader = Reader(client.text)
        self._model = client.model.name
        self._log = log

    def __call__(self, finished: Finished) -> None:
        reasons = finished.finish_reasons
        if finished.usage.completion_tokens and not {*reasons} - {"stop", "length"}:
            tokens = finished.usage.completion_tokens / len(reasons)
            prompt = self._reader.read(finished.prompt, finished.prompt_ids)
            self._log.add(prompt, tokens, self._model)
