"""Compiling in processes: refusals, limits that kill, what is remembered, many at once."""

from concurrent.futures import ThreadPoolExecutor

import msgspec
import pytest

from tests.grammar import hostile
from tests.waiting import CEILING, until
from weir.errors import BadRequest, Overloaded
from weir.grammar import compiler as module
from weir.grammar.compiler import Compiler
from weir.grammar.job import Job
from weir.grammar.process import Process
from weir.params import StructuredOutputs

SLOW = StructuredOutputs(regex="((a{1,1000}){1,1000}){1,1000}")


@pytest.fixture
def compiler(tmp_path):
    made = Compiler(seconds=60.0, folder=tmp_path / "grammars")
    yield made
    made.close()


def test_each_kind_is_compiled_once(compiler, tmp_path):
    for asked, kind in (
        (StructuredOutputs(regex="a|b"), "automaton"),
        (StructuredOutputs(choice=["x", 'y"']), "automaton"),
        (StructuredOutputs(json='{"type": "boolean"}'), "automaton"),
        (StructuredOutputs(json_object=True), "guidance"),
        (StructuredOutputs(json=True), "guidance"),
        (StructuredOutputs(grammar='root ::= "a" root "b" | "c"'), "guidance"),
        (StructuredOutputs(grammar='start: "a" start "b" | "c"'), "guidance"),
    ):
        assert compiler.known(asked) is None
        grammar = compiler.compile(asked)
        assert grammar.kind == kind and compiler.known(asked) == grammar
    again = Compiler(folder=tmp_path / "grammars")
    assert again.compile(StructuredOutputs(regex="a|b")).kind == "automaton"
    assert all(worker._process is None for worker in again._workers), "it lies on disk"
    again.close()


def test_what_takes_too_long_is_killed_and_others_are_served(compiler):
    compiler.seconds = 0.5
    for _ in range(2):
        with pytest.raises(BadRequest, match=r"more than 0\.5 s"):
            compiler.compile(SLOW)
        compiler.seconds = 60.0  # the second time it is remembered
    assert compiler.compile(StructuredOutputs(regex="a")).kind == "automaton"


def test_a_job_ends_with_the_process_that_asked():
    process = Process("weir.grammar.worker")
    ready: list[bytes] = []
    until(lambda: ready or ready.extend(process.receive(1.0)))
    process.send(msgspec.json.encode(Job("key", SLOW, "auto", 1 << 33)))
    until(lambda: not process._out)
    process._socket.close()
    assert process._process.wait(CEILING) == 0


def test_a_worker_that_does_not_start_is_no_verdict_on_the_grammar(compiler, monkeypatch):
    monkeypatch.setattr(module, "Process", lambda _: Process("weir.grammar.nothing"))
    with pytest.raises(Overloaded, match="could be started: the process ended"):
        compiler.compile(StructuredOutputs(regex="a"))
    monkeypatch.undo()
    assert compiler.compile(StructuredOutputs(regex="a")).kind == "automaton"


def test_what_takes_too_much_memory_is_refused():
    small = Compiler(seconds=60.0, memory=1 << 28)
    with pytest.raises(BadRequest, match=r"complex|memory"):
        small.compile(StructuredOutputs(regex=r"(\p{L}|\d){1,300}(\W|\p{N}){1,300}"))
    small.close()


def test_a_backend_can_be_forced():
    for backend, kind in (("automaton", "automaton"), ("guidance", "guidance")):
        forced = Compiler(backend)
        assert forced.compile(StructuredOutputs(regex="a+")).kind == kind
        forced.close()
    with pytest.raises(BadRequest, match="without grammars"):
        Compiler("none").compile(StructuredOutputs(regex="a"))


def test_too_many_at_once_are_turned_away(compiler, monkeypatch):
    monkeypatch.setattr(module, "MAX_WAITING", 2)
    workers = [compiler._idle.get() for _ in compiler._workers]
    waiting = [compiler.submit(StructuredOutputs(regex=f"a{n}")) for n in range(2)]
    with pytest.raises(Overloaded):
        compiler.submit(StructuredOutputs(regex="b"))
    for worker in workers:
        compiler._idle.put(worker)
    assert all(one.result().kind == "automaton" for one in waiting)
    until(lambda: not compiler._waiting)
    assert compiler.submit(StructuredOutputs(regex="b")).result()


def test_threads_share_the_workers(compiler):
    asked = [StructuredOutputs(regex=f"[a-z]{{{n % 7 + 1}}}") for n in range(40)]
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(compiler.compile, asked))
    assert len({grammar.key for grammar in found}) == 7


def test_hostile_patterns_schemas_and_grammars_end(compiler):
    """As many as there is time for; `python -m tests.grammar.hostile` does ten thousand."""
    opener, verdicts = hostile.library(), set()
    for _, asked in hostile.drawn(seed=7, count=28):
        verdicts.add(hostile.tried(compiler, opener, asked, limit=60.0))
    opener.close()
    assert {"automaton", "guidance", "refused"} <= verdicts


def test_what_no_json_holds_is_refused(compiler):
    for asked in (StructuredOutputs(regex="\ud800"), StructuredOutputs(json={"a": {1, 2}.pop})):
        with pytest.raises(BadRequest, match="cannot be written as JSON"):
            compiler.compile(asked)
    large = StructuredOutputs(json={"type": "integer", "maximum": 10**30})
    assert compiler.compile(large).kind == "automaton"
