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
from weir.config import FIELDS
from weir.errors import ConfigError
from weir.options import add_config, config, flag

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
    given = ["MODEL"] if options.MODEL else []
    given += [flag(name) for name in FIELDS if name in vars(options) and name != "api_key"]
    if options.url is not None and given:
        raise ConfigError(f"--url: a server has its own settings, leave out {given[0]}")
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
    return 1 if summary.failed or summary.lost else 0


def told(summary: Summary) -> str:
    text = f"{summary.total} requests: {summary.succeeded} answered, {summary.failed} failed"
    if summary.earlier:
        text += f", {summary.earlier} done by an earlier run"
        text += f" ({summary.lost} failed)" if summary.lost else ""
    if summary.problems:
        counts = ", ".join(f"{code} ({n})" for code, n in summary.problems.most_common())
        text += f"; {counts}"
    return text
