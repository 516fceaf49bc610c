"""A ranker that learns from the answers it is told of: what it takes from them, and what not."""

import json
from random import Random

import numpy as np
import pytest

from weir import connect
from weir.config import Config
from weir.errors import ConfigError
from weir.ranker.adapt import BATCH, NOISE, Adapted
from weir.ranker.files import Read
from weir.ranker.kendall import tau_b
from weir.ranker.log import Answered, LengthLog

TOPICS = ("sea", "sun", "cat", "law")
LENGTHS = {"sea": 20, "sun": 80, "cat": 300, "law": 1200}


class Base:
    """Knows topics apart, and what it has been told of each: 100 tokens for any."""

    about = ""

    def __init__(self, known: dict[str, float] | None = None):
        self.known = known or {}

    def read(self, prompts):
        words = [prompt.split()[0] for prompt in prompts]
        expected = np.array([self.known.get(word, 100.0) for word in words], np.float32)
        states = np.array([[4.0 * (word == topic) for topic in TOPICS] for word in words], "f4")
        return Read(expected, states.reshape(-1, len(TOPICS)))


def answers(count: int, seed: int = 0, lengths=LENGTHS, spread: float = 0.3) -> list[Answered]:
    random, found = Random(seed), []
    for place in range(count):
        topic = random.choice(TOPICS)
        found.append(
            Answered(f"{topic} {place}", lengths[topic] * random.lognormvariate(0, spread))
        )
    return found


def tau(ranker: Adapted, asked: list[Answered]) -> float:
    return tau_b(ranker.predict([a.prompt for a in asked]), [a.tokens for a in asked])


def test_what_the_ranker_does_not_know_is_learned():
    ranker, unseen = Adapted(Base()), answers(200, seed=1)
    ranker.learn(answers(BATCH - 1))
    assert ranker.predict(["sea 1", "law 1"]) == [100.0, 100.0] and not ranker.taus
    ranker.learn(answers(2 * BATCH, seed=2))
    assert ranker.taus["base"] == 0 and ranker.taus["adapted"] > 0.4 and ranker.better
    assert tau(ranker, unseen) > 0.7
    for topic, tokens in LENGTHS.items():
        assert ranker.predict([f"{topic} new"])[0] == pytest.approx(tokens, rel=0.3)


def test_a_ranker_that_knows_better_is_left_alone():
    ranker = Adapted(Base(LENGTHS))
    ranker.learn(answers(4 * BATCH, spread=0.0))
    assert ranker.taus["base"] == 1.0 and not ranker.better
    assert ranker.predict(["sea 1", "law 1"]) == [20.0, 1200.0]


def test_each_answer_is_judged_by_what_the_others_taught():
    """The closed form against fitting again without each answer in turn."""
    told = answers(BATCH)
    ranker = Adapted(Base())
    ranker.learn(told)
    expected, states = ranker.base.read([a.prompt for a in told])
    errors = np.log1p([a.tokens for a in told]) - np.log1p(expected)
    like = np.exp(-np.square(states[:, None] - states[None]).sum(-1)) + 1.0
    like = like.astype(float) + 0.1 * (np.log1p(100.0) - 6.0) ** 2
    guesses = []
    for left in range(BATCH):
        rest = np.arange(BATCH) != left
        seen = like[np.ix_(rest, rest)] + NOISE * np.eye(BATCH - 1)
        guesses.append(like[left, rest] @ np.linalg.solve(seen, errors[rest]))
    assert ranker.taus["adapted"] == pytest.approx(tau_b(guesses, errors.tolist()), abs=0.01)


def test_an_answer_cut_short_says_only_that_it_was_longer():
    """Nobody lets the model end: what is expected must not become the limit that they ask for."""
    ranker = Adapted(Base())
    ranker.learn([Answered(f"law {place}", 16, cut=True) for place in range(4 * BATCH)])
    assert ranker.answers == 0 and ranker.predict(["law 1"]) == [100.0]
    ranker.learn([Answered(f"law {place}", 800, cut=True) for place in range(BATCH)])
    ranker.learn([Answered(f"sea {place}", 20) for place in range(BATCH)])
    long, short = ranker.predict(["law 1", "sea 1"])
    assert long > 500 and short < 40


def test_the_latest_answers_count():
    """Another model is served under the same name: what the one before taught is forgotten."""
    ranker = Adapted(Base(), memory=4 * BATCH)
    turned = dict(zip(TOPICS, (1200, 300, 80, 20), strict=True))
    ranker.learn(answers(6 * BATCH))
    assert ranker.answers == 4 * BATCH and tau(ranker, answers(200, 3)) > 0.7
    ranker.learn(answers(6 * BATCH, 4, turned))
    assert ranker.answers == 4 * BATCH and tau(ranker, answers(200, 5, turned)) > 0.7


def test_a_log_of_lengths_is_learned_at_the_start(tmp_path):
    path = tmp_path / "lengths.jsonl"
    log = LengthLog(path)
    for place in range(2 * BATCH):
        log.add(Answered(f"name a thing {place}", 900.0), "m")
        log.add(Answered(f"write a long essay about {place}", 9.0), "m")
        log.add(Answered(f"write a long essay about {place}", 9000.0), "another")
    with path.open("a") as file:
        file.write('{"prompt": 3}\n[1]\nno row\n\n' + json.dumps({"model": "m"})[:-2])
    assert log.latest("m", 3) == [
        Answered(f"write a long essay about {2 * BATCH - 2}", 9.0),
        Answered(f"name a thing {2 * BATCH - 1}", 900.0),
        Answered(f"write a long essay about {2 * BATCH - 1}", 9.0),
    ]
    assert log.latest("m", 0) == log.latest("nobody", 9) == []
    prompts = ["name a thing", "write a long essay about the sea"]
    given = {"model": "x", "served_model_name": ["m"], "length_log": str(path)}
    short, long = connect.ranker(Config(**given)).predict(prompts)
    assert short > long
    short, long = connect.ranker(Config(**given, ranker_memory=0)).predict(prompts)
    assert short < long


def test_a_log_that_cannot_be_read_is_said(tmp_path):
    with pytest.raises(ConfigError, match=r"--length-log: .* cannot be"):
        connect.ranker(Config(model="x", length_log=str(tmp_path)))
    with pytest.raises(ConfigError, match=r"--ranker: .* cannot be read"):
        connect.ranker(Config(model="x", ranker=str(tmp_path / "absent")))
