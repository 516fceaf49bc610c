"""Predicted lengths on their way from a ranker to the engine, and what happens without them."""

import asyncio
import json
import threading

from tests.fakes import FakeEngine
from tests.waiting import CEILING, eventually
from weir.client import Local
from weir.client.expect import BATCH, Reader
from weir.params import SamplingParams
from weir.ranker.log import Answered, LengthLog

ASK = SamplingParams(temperature=0, max_tokens=4)


class Letters:
    """Expects as many tokens as the prompt has letters, once it may go."""

    def __init__(
        self, failure: Exception | None = None, memory: int = 0, dull: Exception | None = None
    ):
        self.failure = failure  # of predicting
        self.dull = dull  # of learning
        self.memory = memory
        self.taus: dict[str, float] = {}
        self.told: list[Answered] = []
        self.read: list[str] = []
        self.go = threading.Event()

    def predict(self, prompts):
        self.go.wait(CEILING)
        if self.failure is not None:
            raise self.failure
        self.read += prompts
        return [float(len(prompt)) for prompt in prompts]

    def learn(self, answers):
        self.told += answers
        if self.dull is not None:
            raise self.dull
        self.taus = {"base": 1.0}


def test_predictions_follow_requests_and_nobody_waits(run, text, clean, tmp_path):
    async def main():
        engine, ranker = FakeEngine(step_seconds=0.001), Letters()
        client = Local(engine, text, ["m"], ranker=ranker)
        await client.start()
        done = [client.submit(prompt, ASK) for prompt in ("one", "three")]
        await asyncio.gather(*(stream.collect() for stream in done))  # before any prediction
        assert not engine.expected
        hold = f"hold:{tmp_path / 'never'}"  # whatever ends sooner is not predicted
        waiting = client.submit("seventh", SamplingParams(max_tokens=200, n=2), user=hold)
        ranker.go.set()
        await eventually(lambda: "seventh" in ranker.read)
        await eventually(lambda: any(7.0 in one.tokens.values() for one in engine.expected))
        told = {uid: length for one in engine.expected for uid, length in one.tokens.items()}
        assert sorted(told.values())[-2:] == [7.0, 7.0]  # both choices of one prompt
        assert all(not one.error for one in engine.expected)
        waiting.abort()
        await client.close()

    run(main)


def test_a_ranker_that_fails_is_not_asked_again(run, text, clean):
    async def main():
        engine, ranker = FakeEngine(), Letters(ZeroDivisionError("bad weights"))
        ranker.go.set()
        client = Local(engine, text, ["m"], ranker=ranker)
        await client.start()
        await client.submit("one", ASK).collect()
        await eventually(lambda: engine.expected)
        assert "bad weights" in engine.expected[0].error
        ranker.failure = None
        (answer,) = await client.submit("two", ASK).collect()
        assert answer.finish_reason == "length" and not ranker.read
        assert all(one.error for one in engine.expected)  # the next engine hears of it as well
        await client.close()

    run(main)


def test_the_ranker_is_told_how_long_answers_were(run, text, clean):
    """In batches, of what ended by itself or by its limit; of several choices, the mean."""

    async def main():
        ranker = Letters(memory=9)
        ranker.go.set()
        client = Local(FakeEngine(), text, ["m"], ranker=ranker)
        await client.start()
        await client.submit("lost", ASK, user="fail").collect()
        await client.submit("two", SamplingParams(max_tokens=9, n=2), user="end:3").collect()
        assert not ranker.told and not client.ranking
        for place in range(BATCH - 2):
            await client.submit(f"{place}", ASK).collect()
        await eventually(lambda: client.ranking == {"base": 1.0})
        assert ranker.told[:2] == [Answered("two", 3.0), Answered("0", 4.0, cut=True)]
        assert len(ranker.told) == BATCH - 1
        await client.close()

    run(main)


def test_a_ranker_that_fails_to_learn_goes_on_as_it_is(run, text, clean, caplog, tmp_path):
    async def main():
        engine, ranker = FakeEngine(), Letters(memory=9, dull=ZeroDivisionError("singular"))
        ranker.go.set()
        client = Local(engine, text, ["m"], ranker=ranker)
        await client.start()
        for place in range(BATCH):
            await client.submit(f"{place}", ASK).collect()
        await eventually(lambda: "failed to learn" in caplog.text)
        for place in range(BATCH):
            await client.submit(f"{place}", ASK).collect()
        hold = f"hold:{tmp_path / 'never'}"
        waiting = client.submit("later", SamplingParams(max_tokens=200), user=hold)
        await eventually(lambda: "later" in ranker.read)
        waiting.abort()
        await client.close()
        assert len(ranker.told) == BATCH and not client.ranking
        assert not any(one.error for one in engine.expected)

    run(main)
    (warning,) = [record for record in caplog.records if "failed to learn" in record.getMessage()]
    assert "singular" in warning.getMessage()


def test_a_prompt_is_read_without_its_template(text):
    reader = Reader(text)
    whole = text.chat([{"role": "user", "content": "how long?"}])
    assert whole != "how long?"
    assert reader.read(whole, []) == reader.read(None, text.encode(whole)) == "how long?"
    assert reader.read("how long?", []) == "how long?"


def test_lengths_are_logged_for_training(run, text, clean, tmp_path):
    async def main():
        lengths = LengthLog(tmp_path / "log.jsonl")
        client = Local(FakeEngine(), text, ["m"], lengths=lengths)
        await client.start()
        await client.submit("hello", ASK).collect()
        client.submit("never", SamplingParams(max_tokens=200)).abort()
        await client.submit(text.encode("ids"), ASK, user="fail").collect()
        await client.close()

    run(main)
    (line,) = (tmp_path / "log.jsonl").read_text().splitlines()
    row = {"prompt": "hello", "output_tokens": 4.0, "cut": True, "model": "m", "source": ""}
    assert json.loads(line) == row
