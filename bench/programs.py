"""What the runtime makes of a program's structure: real data, one thing left out at a time.

    python bench/programs.py [--model smollm2-135m] [--programs 16] [--json FILE] [field=value ...]

Data: the folder `prefix` of $WEIR_DATA. Arms: all; without the prefix cache; without cache-aware
order; without parallel calls (branches and programs one after another); without the hint that
computes a shared prefix before its branches; and none of it. With `--select`: a `select` against
a call for each choice, one after the other and without a cache. What follows the options are
settings of the engine.
"""

import argparse
import asyncio
import json
import time
from collections import defaultdict
from contextlib import nullcontext
from pathlib import Path
from statistics import median

import weir as w
from weir.bench.named import data_folder
from weir.lang.backend.base import Prompt
from weir.lang.loop import spawn, wait
from weir.rows import read_rows


def rows(name: str, count: int) -> list[dict]:
    return list(read_rows(data_folder() / "prefix" / f"{name}.jsonl.gz", count))


@w.function
def few_shot(s, prefix, question):
    s += prefix
    s += f"Question: {question}\nAnswer:" + w.gen("answer", max_tokens=16, ignore_eos=True)


@w.function
def thoughts(s, question):
    """Three plans, each carried out twice."""
    s += w.system("You are a careful mathematician. Think before you answer.")
    s += w.user(question + "\nPropose a plan.")
    for plan in s.fork(3):
        plan += w.assistant(w.gen("plan", max_tokens=24, ignore_eos=True))
        plan += w.user("Carry it out.")
        for way in plan.fork(2):
            way += w.assistant(w.gen("solution", max_tokens=24, ignore_eos=True))


@w.function
def judge(s, question, answer):
    s += w.system("You judge answers fairly, along one dimension at a time.")
    s += w.user(f"Question: {question}\n\nAnswer: {answer}")
    with s.fork(4) as branches:
        branches += [w.user(f"Judge its {d}.") for d in ("clarity", "depth", "truth", "style")]
        branches += w.assistant(w.gen("judgment", max_tokens=16, ignore_eos=True))
    s += w.assistant(w.gen("grade", max_tokens=4, ignore_eos=True))


@w.function
def turns(s, questions):
    for question in questions:
        s += w.user(question)
        s += w.assistant(w.gen("answer", max_tokens=32, ignore_eos=True))


@w.function
def agent(s, prefix, question, steps):
    """A recorded ReAct run: each step's text is asked for, and then stands as it was recorded."""
    s += prefix + f"Question: {question}\n"
    for number, step in enumerate(steps, 1):
        s += f"Thought {number}:"
        (asked,) = s.fork(1)
        asked += w.gen("step", max_tokens=16, ignore_eos=True)
        asked.sync()
        s += f" {step['thought']}\nAction: {step['action']}\nObservation: {step['observation']}\n"


@w.function
def choose(s, prefix, query, choices):
    s += prefix + query
    s += w.select("choice", [" " + choice for choice in choices])


def workloads(count: int) -> dict[str, tuple[w.Program, list[dict]]]:
    questions = [row["question"] for row in rows("gsm8k", count)]
    solved = rows("gsm8k", count + 8)[count:]
    shots = "".join(f"Question: {r['question']}\nAnswer: {r['solution']}\n\n" for r in solved)
    runs = rows("react_hotpotqa", count + 1)
    example = f"Question: {runs[-1]['question']}\n" + "".join(
        f"Thought: {s['thought']}\nAction: {s['action']}\nObservation: {s['observation']}\n"
        for s in runs[-1]["steps"]
    )
    picks = [row for row in rows("choices", 4 * count) if row["task"] == "copa"]
    told = "".join(f"{r['query']} {r['choices'][r['gold']]}\n\n" for r in picks[count : count + 12])
    talks = rows("mt_bench", count)
    answers = {row["id"]: row for row in rows("mt_bench_answers", 4000)}
    judged = [
        {"question": talk["turns"][0], "answer": _answer(answers.get(talk["id"], {}))}
        for talk in talks
    ]
    agents = [
        {"prefix": example, "question": run["question"], "steps": run["steps"][:4]}
        for run in runs[:count]
    ]
    return {
        "few-shot": (few_shot, [{"prefix": shots, "question": q} for q in questions]),
        "choices": (
            choose,
            [{"prefix": told, "query": p["query"], "choices": p["choices"]} for p in picks[:count]],
        ),
        "tree of thought": (thoughts, [{"question": q} for q in questions]),
        "judge": (judge, judged),
        "multi-turn": (turns, [{"questions": talk["turns"] * 2} for talk in talks]),
        "agent": (agent, agents),
    }


def _answer(row: dict) -> str:
    found = row.get("answers") or row.get("turns") or row.get("output") or row.get("answer") or ""
    return (found if isinstance(found, str) else str(found[0]))[:1500]


class Plain(w.Runtime):
    """A runtime with parts of it left out."""

    hints = parallel = True

    def __init__(self, model, **settings):
        super().__init__(model, **settings)
        self.turns = asyncio.Lock()

    async def generate(self, prompt, settings):
        async with self._turn_taken():
            async for piece in super().generate(prompt, settings):
                yield piece

    async def score(self, prompt, choices):
        async with self._turn_taken():
            return await super().score(prompt, choices)

    async def cache(self, prompt):
        if self.hints:
            await super().cache(prompt)

    def _turn_taken(self):
        return nullcontext() if self.parallel else self.turns


ENGINES = {
    "lpm": {"scheduling_policy": "lpm"},
    "fcfs": {"scheduling_policy": "fcfs"},
    "no cache": {"scheduling_policy": "lpm", "enable_prefix_caching": False},
}
ARMS = {  # name: engine, hints, parallel
    "all": ("lpm", True, True),
    "no cache": ("no cache", True, True),
    "no tree order": ("fcfs", True, True),
    "no parallelism": ("lpm", True, False),
    "no hint": ("lpm", False, True),
    "none": ("no cache", False, False),
}


def run(model: str, engine: str, settings: dict, jobs: dict) -> dict[str, dict[str, float]]:
    """Seconds of every job in each of an engine's arms, once it has run all of them."""
    backend = Plain(model, **settings | ENGINES[engine])
    seconds: dict[str, dict[str, float]] = {}
    arms = {name: of for name, of in ARMS.items() if of[0] == engine}
    for arm, (_, hints, parallel) in ({"warm up": (engine, True, True)} | arms).items():
        backend.hints, backend.parallel = hints, parallel
        seconds[arm] = {name: once(backend, *job) for name, job in jobs.items()}
    backend.shutdown()
    return {arm: seconds[arm] for arm in arms}


def once(backend: Plain, program: w.Program, batch: list[dict]) -> float:
    w.flush_cache(backend)
    began = time.perf_counter()
    states = program.run_batch(batch, backend=backend, temperature=0)
    seconds = time.perf_counter() - began
    failed = next((s.error() for s in states if s.error() is not None), None)
    if failed is not None:
        raise SystemExit(f"{program.__name__}: {failed}")
    return seconds


async def separately(backend: w.Runtime, prompt: str, choices: list[str]) -> list[float]:
    """The mean logprobs of the choices, by a call each."""
    rated = []
    for choice in choices:
        (score,) = await backend.score(Prompt(prompt), [choice])
        rated.append(sum(score.logprobs) / len(score.logprobs))
    return rated


def selects(model: str, settings: dict, job: tuple[w.Program, list[dict]], rounds: int) -> None:
    """Seconds for all questions of a job, both ways; four choices each."""
    program, batch = job
    pairs = zip(batch, [*batch[1:], batch[0]], strict=True)
    batch = [entry | {"choices": entry["choices"] + other["choices"]} for entry, other in pairs]
    arms = {
        "select": w.Runtime(model, **settings),
        "calls": w.Runtime(model, **settings | {"enable_prefix_caching": False}),
    }
    seconds, chosen = defaultdict(list), {}
    for number in range(rounds + 1):
        for arm, backend in arms.items():
            w.flush_cache(backend)
            began = time.perf_counter()
            if arm == "select":
                states = program.run_batch(batch, backend=backend)
                best = [state["choice"] for state in states]
            else:
                best = []
                for entry in batch:
                    choices = [" " + choice for choice in entry["choices"]]
                    prompt = entry["prefix"] + entry["query"]
                    rated = wait(spawn(separately(backend, prompt, choices)))
                    best.append(choices[max(range(len(rated)), key=rated.__getitem__)])
            if number:  # the first warms up
                seconds[arm].append(time.perf_counter() - began)
            chosen[arm] = best
    same = sum(a == b for a, b in zip(chosen["select"], chosen["calls"], strict=True))
    middle = {arm: median(of) for arm, of in seconds.items()}
    print(f"select of 4, {len(batch)} questions: {middle['select']:.2f} s, by calls", end=" ")
    print(f"{middle['calls']:.2f} s, {middle['calls'] / middle['select']:.1f} x; {same} same")
    for backend in arms.values():
        backend.shutdown()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--programs", type=int, default=16)
    parser.add_argument("--repeat", type=int, default=3, help="rounds, each of all arms (median)")
    parser.add_argument("--only", metavar="NAME", action="append", help="of a program")
    parser.add_argument("--select", action="store_true")
    parser.add_argument("--json")
    parser.add_argument("settings", nargs="*", metavar="field=value")
    options = parser.parse_args()
    settings = dict(setting.split("=", 1) for setting in options.settings)
    jobs = workloads(options.programs)
    if options.select:
        return selects(options.model, settings, jobs["choices"], options.repeat)
    jobs = {name: job for name, job in jobs.items() if not options.only or name in options.only}
    rounds: dict[str, dict[str, list[float]]] = {name: defaultdict(list) for name in jobs}
    for _ in range(options.repeat):
        for engine in ENGINES:
            for arm, seconds in run(options.model, engine, settings, jobs).items():
                for name, took in seconds.items():
                    rounds[name][arm].append(took)
    print(f"{'seconds':<16}" + "".join(f"{arm:>16}" for arm in ARMS) + "   all / none")
    for name, arms in rounds.items():
        of = {arm: median(times) for arm, times in arms.items()}
        print(f"{name:<16}" + "".join(f"{of[arm]:16.2f}" for arm in ARMS), end="")
        print(f"{of['none'] / of['all']:11.2f} x")
    if options.json:
        Path(options.json).write_text(json.dumps(rounds, indent=1))


if __name__ == "__main__":
    main()
