"""What the prefix cache is worth: few-shot GSM8K and multi-turn MT-bench, cache on against off.

    python bench/prefix.py [MODEL]

Data: the folder `prefix` of $WEIR_DATA, or the samples that come with Weir. The optimum is the hit
rate of a cache without bounds and with pages of one token, had the prompts come one after another.
"""

import argparse
import os
import time
from collections.abc import Callable
from pathlib import Path

from weir import LLM, SamplingParams
from weir.llm.outputs import RequestOutput
from weir.sim.workload import Workload, fewshot, mt_bench

ROOT = Path(__file__).parent.parent
DATA = Path(os.environ["WEIR_DATA"]) / "prefix" if "WEIR_DATA" in os.environ else None
GREEDY = SamplingParams(temperature=0.0, max_tokens=32, ignore_eos=True)

Run = tuple[float, list[RequestOutput]]  # seconds, and what came back in the order it was sent


def few_shot(llm: LLM) -> Run:
    workload = fewshot(DATA or ROOT / "weir/data/demo_prompts.jsonl", 64, GREEDY.max_tokens or 0)
    begin = time.perf_counter()
    outputs = llm.generate([str(item.prompt) for item in workload.items], GREEDY)
    return time.perf_counter() - begin, outputs


def multi_turn(llm: LLM) -> Run:
    """All conversations a turn at a time; the second turn follows the model's own first answer."""
    workload: Workload = mt_bench(DATA or ROOT / "tests/data/workloads/mt_bench.jsonl", 32, 0)
    talks = [[{"role": "user", "content": str(item.prompt)}] for item in workload.items]
    begin = time.perf_counter()
    first = llm.chat(talks, GREEDY)
    for talk, output, item in zip(talks, first, workload.items, strict=True):
        talk.append({"role": "assistant", "content": output.outputs[0].text})
        talk.append({"role": "user", "content": item.turns[0]})
    second = llm.chat(talks, GREEDY)
    return time.perf_counter() - begin, [*first, *second]


def optimum(outputs: list[RequestOutput]) -> int:
    """Tokens that a cache of everything would have found; each prompt's last must be computed."""
    root: dict[int, dict] = {}
    found = 0
    for output in outputs:
        prompt, node, hit, matching = output.prompt_token_ids, root, 0, True
        for token in [*prompt, *output.outputs[0].token_ids]:
            matching = matching and token in node
            hit += matching
            node = node.setdefault(token, {})
        found += min(hit, len(prompt) - 1)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", nargs="?", default="smollm2-135m", metavar="MODEL")
    options = parser.parse_args()
    runs: dict[str, Callable[[LLM], Run]] = {"few-shot": few_shot, "multi-turn": multi_turn}
    for name, run in runs.items():
        seconds = {}
        for cache in (False, True):
            with LLM(options.model, enable_prefix_caching=cache) as llm:
                llm.generate("warm up", SamplingParams(max_tokens=4), progress=False)
                seconds[cache], outputs = run(llm)
        total = sum(len(output.prompt_token_ids) for output in outputs)
        cached = sum(output.num_cached_tokens for output in outputs)
        print(
            f"{name:<11} off {seconds[False]:6.2f} s   on {seconds[True]:6.2f} s   "
            f"{seconds[False] / seconds[True]:.2f} x   hit rate {cached / total:.1%} "
            f"of {optimum(outputs) / total:.1%} possible"
        )


if __name__ == "__main__":
    main()
