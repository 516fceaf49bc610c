"""What the server costs: 32 streams over HTTP against the same engine called in process.

    python bench/overhead.py [MODEL] [RUNS]

Runs alternate, so that a busy neighbour hurts both; the medians are compared.
"""

import argparse
import asyncio
import statistics
import time

from weir import LLM, SamplingParams
from weir.bench.client import Target
from weir.bench.load import load
from weir.bench.private import private
from weir.http import Http
from weir.sim.report import measure
from weir.sim.workload import Words, Workload, random

STREAMS, PROMPT, OUTPUT = 32, 128, 128


def in_process(llm: LLM, workload: Workload) -> float:
    """Output tokens a second."""
    params = SamplingParams(temperature=0.0, max_tokens=OUTPUT, ignore_eos=True)
    begin = time.perf_counter()
    outputs = llm.generate([list(item.prompt) for item in workload.items], params, progress=False)
    made = sum(len(output.outputs[0].token_ids) for output in outputs)
    return made / (time.perf_counter() - begin)


def over_http(target: Target, workload: Workload) -> float:
    records, seconds = asyncio.run(load(target, workload))
    return measure(records, seconds).output_throughput


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", nargs="?", default="smollm2-135m", metavar="MODEL")
    parser.add_argument("runs", nargs="?", type=int, default=3, metavar="RUNS")
    options = parser.parse_args()
    model = options.model
    direct, served = [], []
    flags = ["--no-enable-prefix-caching"]
    with LLM(model, enable_prefix_caching=False) as llm, private(model, flags) as server:
        target = Target(Http(server.url, server.headers), "openai", model, ignore_eos=True)
        for number in range(options.runs + 1):
            workload = random(Words(llm.text, number), STREAMS, PROMPT, OUTPUT)
            rates = in_process(llm, workload), over_http(target, workload)
            if number:  # the first warms up
                direct.append(rates[0])
                served.append(rates[1])
    a, b = statistics.median(direct), statistics.median(served)
    print(f"in process {a:.0f} tok/s, over HTTP {b:.0f} tok/s, overhead {1 - b / a:.1%}")


if __name__ == "__main__":
    main()
