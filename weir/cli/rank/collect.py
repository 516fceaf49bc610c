"""Ask a running server for answers and record their lengths, to train a ranker on them.

PROMPTS are JSON lines with a text `prompt`, or a ShareGPT file, whose own answers are counted if no
--url is given. Prompts that the output already has are not asked again. A server started with
--length-log writes the same format for the requests that it serves.
"""

import asyncio
import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path

import msgspec

from weir.bench.datasets import positive, tokenizer
from weir.bench.talk import first_model
from weir.errors import ConfigError
from weir.http import Http, HttpError, bearer
from weir.http import run as run_async
from weir.progress import progress
from weir.ranker.log import Answered, LengthLog
from weir.rows import read_rows
from weir.sim.workload import custom, sharegpt

USAGE = "weir rank collect PROMPTS -o FILE [--url URL] [OPTIONS]"


def add_arguments(parser: ArgumentParser) -> None:
    add = parser.add_argument
    add("prompts", type=Path, metavar="PROMPTS", help="JSON lines, or ShareGPT's JSON")
    add("--output", "-o", type=Path, required=True, metavar="FILE", help="is added to")
    add("--url", metavar="URL", help="such as http://127.0.0.1:8000")
    add("--model", metavar="NAME", help="of the server; or whose tokens count ShareGPT's answers")
    add("--api-key", metavar="KEY", help="sent as a bearer token")
    add("--max-tokens", type=positive, default=2048, metavar="N", help="most of an answer (2048)")
    add("--temperature", type=float, default=1.0, metavar="T", help="(1)")
    add("--concurrency", type=positive, default=64, metavar="N", help="requests at once (64)")
    add("--num-prompts", type=positive, default=10_000, metavar="N", help="at most (10000)")
    add("--quiet", action="store_true", help="no progress bar")


def run(options: Namespace) -> int:
    shares = options.prompts.suffix == ".json"
    if not options.url and not shares:
        raise ConfigError(
            "--url: whose answers? Give a server, or a ShareGPT file with answers; "
            "lines that have output_tokens are ready for `weir rank train`"
        )
    if options.prompts.resolve() == options.output.resolve():
        raise ConfigError(f"--output: {options.output} holds the prompts: give another file")
    text = tokenizer(options.model or "smollm2-135m") if shares else None
    if text is not None:
        output = 8 if options.url else None
        items = sharegpt(options.prompts, text, options.num_prompts, 0, output).items
    else:
        items = custom(options.prompts, options.num_prompts, 1).items
    if any(not isinstance(item.prompt, str) for item in items):
        raise ConfigError(f"{options.prompts}: holds a prompt of token ids: give text")
    log = LengthLog(options.output)
    known = {row.get("prompt") for row in read_rows(options.output)}
    new = {str(item.prompt): item.output for item in items if item.prompt not in known}
    failed = 0
    if options.url:
        failed = run_async(_ask(options, list(new), log))
    else:
        for prompt, tokens in new.items():
            log.add(Answered(prompt, tokens), "sharegpt", options.prompts.stem)
    done = "asked" if options.url else "counted"
    print(f"{len(new)} {done}, {failed} failed, {len(known)} known before", file=sys.stderr)
    return 1 if failed else 0


async def _ask(options: Namespace, prompts: list[str], log: LengthLog) -> int:
    """Ask all prompts. Returns the number of failures; prints the first one's reason."""
    http = Http(options.url, bearer(options.api_key))
    model = options.model or await first_model(http)
    most, failed = asyncio.Semaphore(options.concurrency), 0

    async def one(prompt: str) -> None:
        nonlocal failed
        body = {
            "model": model,
            "messages": [{"role": "user", "content": prompt}],
            "max_tokens": options.max_tokens,
            "temperature": options.temperature,
        }
        async with most:
            try:
                answer = msgspec.json.decode(await http.post("/v1/chat/completions", body))
                cut = answer["choices"][0]["finish_reason"] == "length"
                log.add(Answered(prompt, int(answer["usage"]["completion_tokens"]), cut), model)
            except (HttpError, LookupError, TypeError, msgspec.DecodeError) as error:
                failed += 1
                if failed == 1:
                    print(f"weir rank collect: the first that failed: {error}", file=sys.stderr)
        bar.advance(1)

    with progress(len(prompts), "prompts", hidden=options.quiet) as bar:
        async with asyncio.TaskGroup() as group:
            for prompt in prompts:
                group.create_task(one(prompt))
    return failed
