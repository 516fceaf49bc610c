"""What KV on disk is worth: time to the first token with a prefix in memory, on disk, or nowhere.

    python bench/disk_cache.py MODEL [FOLDER]

Prompts of random tokens, one at a time, which together exceed the pages in memory; then the same
again after a restart. FOLDER (default: a temporary one) is on the disk that is measured.
"""

import argparse
import random
import statistics
import tempfile
import time

from weir import LLM, SamplingParams

PROMPTS, LENGTH, MEMORY = 16, 1024, "128MiB"
ONE = SamplingParams(temperature=0.0, max_tokens=1)


Turn = tuple[list[float], list[int], float]


def run(llm: LLM, prompts: list[list[int]]) -> Turn:
    """Seconds until each prompt's first token, the tokens, and the share of the prompts found."""
    seconds, tokens, found = [], [], 0
    for prompt in prompts:
        began = time.perf_counter()
        output = llm.generate(prompt, ONE, progress=False)[0]
        seconds.append(time.perf_counter() - began)
        tokens += output.outputs[0].token_ids
        found += output.num_cached_tokens
    return seconds, tokens, found / sum(map(len, prompts))


def row(name: str, turn: Turn) -> None:
    low, middle, high = statistics.quantiles([1000 * value for value in turn[0]], n=4)
    print(f"| {name} | {middle:.0f} | {low:.0f} to {high:.0f} | {turn[2]:.0%} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("folder", nargs="?", metavar="FOLDER", help="on the disk that is measured")
    options = parser.parse_args()
    rng = random.Random(1)
    prompts = [[rng.randrange(1000, 30000) for _ in range(LENGTH)] for _ in range(PROMPTS)]
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        plain = {"model": options.model, "kv_cache_memory": MEMORY, "grammar_backend": "none"}
        kept = plain | {"disk_cache": folder, "disk_cache_size": "2GiB"}
        print("| prefix | first token, ms | quartiles | prompt tokens found |\n|---|---|---|---|")
        answers = []
        for name, settings in (("no disk", plain), ("disk", kept), ("disk, restarted", kept)):
            with LLM(**settings) as llm:
                for number in (1, 2):
                    turn = run(llm, prompts)
                    answers.append(turn[1])
                    row(f"{name}, turn {number}", turn)
                if name == "disk":
                    row("in memory", run(llm, [prompts[-1]] * 8))
        print(
            f"\nAll {len(answers)} turns gave the same tokens: {len(set(map(tuple, answers))) == 1}"
        )


if __name__ == "__main__":
    main()
