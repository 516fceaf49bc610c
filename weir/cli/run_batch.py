"""Answer a file of OpenAI batch requests.

Each input line is a request to /v1/chat/completions, /v1/completions, /v1/responses or
/v1/embeddings; each output line is an answer. A run that was stopped continues where it was when it
is started again.
"""

import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path

from weir.batch import Summary, run_batch
from weir.bench.datasets import positive
from weir.options import add_config, config

USAGE = "weir run-batch [MODEL | --url URL] -i INPUT.jsonl -o OUTPUT.jsonl [OPTIONS]"


def add_arguments(parser: ArgumentParser) -> None:
    add = parser.add_argument
    add("--input-file", "-i", type=Path, required=True, metavar="FILE", help="requests, JSON lines")
    add("--output-file", "-o", type=Path, required=True, metavar="FILE", help="answers, JSON lines")
    add("--url", metavar="URL", help="a running server, instead of a model of this run's own")
    add("--concurrency", type=positive, default=256, metavar="N", help="requests at once (256)")
    add("--quiet", action="store_true", help="no progress bar")
    add_config(parser)


def run(options: Namespace) -> int:
    """Returns 0 if every input line now has an answer that is not an error."""
    settings = config(options)
    try:
        summary = run_batch(
            options.input_file,
            options.output_file,
            settings if options.url is None else None,
            base_url=options.url,
            api_key=next(iter(settings.api_key), None),
            concurrency=options.concurrency,
            hidden=options.quiet,
        )
    except (KeyboardInterrupt, OSError):
        print("stopped. What was answered is kept: run again to go on", file=sys.stderr)
        raise
    print(told(summary), file=sys.stderr)
    return 1 if summary.failed else 0


def told(summary: Summary) -> str:
    text = f"{summary.total} requests: {summary.succeeded} answered, {summary.failed} failed"
    if summary.earlier:
        text += f", {summary.earlier} done by an earlier run"
    if summary.problems:
        counts = ", ".join(f"{code} ({n})" for code, n in summary.problems.most_common(5))
        text += f"; {counts}"
    return text
