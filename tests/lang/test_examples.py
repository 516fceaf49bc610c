"""The classic programs on the embedded model: what they say is the model's, how is ours."""

import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType

import pytest

import weir
from tests.embedded import find

EXAMPLES = Path(__file__).parents[2] / "examples"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def backend():
    path = find()
    runtime = weir.Runtime(str(path), max_model_len=1024, kv_cache_memory="256MiB", seed=1)
    yield runtime
    runtime.shutdown()


def test_chat(backend):
    state = load("chat").chat.run(
        ["What is the capital of France?", "Say it again."], backend=backend, temperature=0
    )
    assert "Paris" in state["answer_0"]
    assert [m["role"] for m in state.messages()] == ["system"] + ["user", "assistant"] * 2
    assert state.get_meta_info("answer_1")["cached_tokens"] > 30  # the first turns


def test_tips(backend):
    state = load("tips").tips.run("staying healthy", backend=backend)
    assert state.text().count("Tip ") == 2 and state["summary"]


def test_tree_of_thought(backend):
    state = load("tree_of_thought").tree_of_thought.run("What is 2 + 3?", backend=backend)
    assert sum(state["votes"].values()) == 4 and state["answer"] in state["votes"]


def test_classify(backend):
    classify = load("classify").classify
    reviews = [["What a beautiful and happy film."], ["Terrible, boring and ugly."]]
    states = classify.run_batch(reviews, backend=backend)
    assert [state["sentiment"] for state in states] == [" positive", " negative"]


def test_react(backend):
    state = load("react").react.run("How many people live in Paris?", backend=backend)
    assert state["action_1"] in (" Search[", " Finish[")
    assert "answer" in state


def test_extract(backend):
    extract = load("extract")
    state = extract.extract.run(
        "Marie Curie, born in 1867, studied radioactivity.", backend=backend
    )
    person = json.loads(state["person"])
    assert 1000 <= person["born"] <= 2030 and set(person) == {"name", "born", "field"}


def test_skeleton(backend):
    state = load("skeleton").skeleton.run("Why do people travel?", backend=backend)
    assert len(state["paragraph"]) == 3 and all(
        text in state["essay"] for text in state["paragraph"]
    )


def test_judge(backend):
    state = load("judge").judge.run("Rivers made cities.", backend=backend)
    assert state["grade"] in "ABCD" or state["sense"] == "It is nonsense."


def test_every_example_is_run_here():
    tests = {name.removeprefix("test_") for name in globals() if name.startswith("test_")}
    assert {path.stem for path in EXAMPLES.glob("*.py")} <= tests


def test_a_shape_is_kept_to(backend):
    @weir.function
    def program(s):
        s += "Three days have how many hours?" + weir.gen("hours", dtype=int, max_tokens=8)
        s += " A date: " + weir.gen("date", regex=r"\d{4}-\d{2}-\d{2}", max_tokens=16)

    state = program.run(backend=backend, temperature=0)
    assert state["hours"].strip().lstrip("+-").isdigit()
    assert re.fullmatch(r"\d{4}-\d{2}-\d{2}", state["date"])
