"""What JSON answers cost: python bench/structured.py [--batch B] [--backend guidance] [field=value]

Arms, in turn: free text of the same length, masks alone, masks with jumps, and jumps with a grammar
that is compiled and opened anew for every request. Greedy. What follows the options are settings.
"""

import argparse
import statistics
import time

import weir
from weir.grammar.compiler import Compiler
from weir.params import SamplingParams, StructuredOutputs

STRING = {"type": "string", "pattern": "^[A-Z][a-z]+( [A-Z][a-z]+)?$", "maxLength": 20}
SCHEMA = {
    "type": "object",
    "properties": {
        "full_name": STRING,
        "house_of_residence": {"enum": ["Gryffindor", "Slytherin", "Ravenclaw", "Hufflepuff"]},
        "current_status": {"enum": ["alive", "deceased"]},
        "year_of_birth": {"type": "integer", "minimum": 1800, "maximum": 2000},
        "profession": STRING,
        "magic_wand": {
            "type": "object",
            "properties": {
                "wood": {"enum": ["holly", "oak", "vine"]},
                "core_material": {"enum": ["phoenix feather", "unicorn hair", "dragon nerve"]},
                "length_in_inches": {"type": "integer", "minimum": 6, "maximum": 16},
            },
            "required": ["wood", "core_material", "length_in_inches"],
            "additionalProperties": False,
        },
        "is_muggle_born": {"type": "boolean"},
    },
    "required": ["full_name", "house_of_residence", "current_status", "year_of_birth",
                 "profession", "magic_wand", "is_muggle_born"],
    "additionalProperties": False,
}  # fmt: skip
NAMES = ["Harry Potter", "Hermione Granger", "Ron Weasley", "Draco Malfoy", "Luna Lovegood",
         "Cho Chang", "Cedric Diggory", "Minerva McGonagall"]  # fmt: skip
ARMS = ("free", "mask", "jump", "unshared")


def run(llm: weir.LLM, arm: str, prompts: list, batch: int, lengths: list[int]) -> tuple:
    """Seconds, tokens and steps of one arm."""
    engine = llm._engine
    engine.library.jumps = arm != "mask"
    engine.flush()
    tokens, steps, began = [], engine.stats().step, time.perf_counter()
    for at in range(0, len(prompts), batch):
        some = prompts[at : at + batch]
        if arm == "free":
            params = [
                SamplingParams(temperature=0, max_tokens=n, ignore_eos=True)
                for n in lengths[at : at + batch]
            ]
        else:
            asked = StructuredOutputs(json=SCHEMA)
            params = [SamplingParams(temperature=0, max_tokens=400, structured_outputs=asked)]
            params *= len(some)
        if arm == "unshared":
            for prompt, one in zip(some, params, strict=True):
                llm._compiler._answers.clear()
                engine.library.forget()
                outputs = llm.chat([prompt], [one], progress=False)
                tokens.append(len(outputs[0].outputs[0].token_ids))
            continue
        outputs = llm.chat(some, params, progress=False)
        assert arm == "free" or all(one.outputs[0].finish_reason == "stop" for one in outputs)
        tokens += [len(one.outputs[0].token_ids) for one in outputs]
    return time.perf_counter() - began, tokens, engine.stats().step - steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--backend", default="auto", help="auto, automaton or guidance")
    parser.add_argument("settings", nargs="*", metavar="field=value")
    options = parser.parse_args()
    settings = dict(setting.split("=", 1) for setting in options.settings)
    prompts = [
        [{"role": "user", "content": f"Describe {NAMES[n % len(NAMES)]} ({n}) as JSON."}]
        for n in range(options.prompts)
    ]
    with weir.LLM(options.model, **settings) as llm:
        llm._compiler = Compiler(options.backend)  # nothing on disk
        _, lengths, _ = run(llm, "mask", prompts, options.batch, [])
        seconds: dict[str, list[float]] = {arm: [] for arm in ARMS}
        made, steps = {}, {}
        for _ in range(options.rounds):
            for arm in ARMS if options.batch == 1 else ARMS[:3]:
                taken, tokens, steps[arm] = run(llm, arm, prompts, options.batch, lengths)
                seconds[arm].append(taken)
                made[arm] = sum(tokens)
    base = statistics.median(seconds["mask"])
    print(f"{options.prompts} answers, {options.batch} at once, median of {options.rounds} rounds")
    for arm, times in seconds.items():
        if not times:
            continue
        middle = statistics.median(times)
        print(
            f"{arm:9} {middle:6.2f} s ({min(times):.2f} to {max(times):.2f})  {made[arm]:5} tokens "
            f"in {steps[arm]:4} steps  {base / middle:.2f} x the speed of masks alone"
        )


if __name__ == "__main__":
    main()
