"""Load a running server and report latency and throughput.

Works against any OpenAI-compatible server, and against SGLang's /generate. The printed block and
the keys of the JSON file are those of `vllm bench serve`.
"""

import math
import resource
import sys
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

import msgspec

from weir.bench import datasets, reporting
from weir.bench.client import ENDPOINTS, Target
from weir.bench.load import load
from weir.bench.talk import first_model
from weir.errors import ConfigError
from weir.http import Http, bearer
from weir.http import run as run_loop
from weir.progress import progress
from weir.sim.report import Record, block, flat, measure
from weir.sim.workload import Workload, as_text
from weir.text import Text

USAGE = "weir bench serve [OPTIONS]"


def add_arguments(parser: ArgumentParser) -> None:
    group = parser.add_argument_group("server")
    add = group.add_argument
    add("--base-url", metavar="URL", help="such as http://127.0.0.1:8000; or --host and --port")
    add("--host", default="127.0.0.1", help="(127.0.0.1)")
    add("--port", type=int, default=8000, help="(8000)")
    add(
        "--backend", "--endpoint-type", choices=ENDPOINTS, default="openai",
        help="kind of API; llama.cpp speaks openai (openai)",
    )  # fmt: skip
    add("--endpoint", default="", metavar="PATH", help="path, if not the API's usual one")
    add("--model", metavar="NAME", help="name to ask for; default: the first that is served")
    add("--tokenizer", metavar="NAME", help="to count and make prompts; default: the model")
    add("--api-key", metavar="KEY", help="sent as a bearer token")
    add("--timeout", type=float, default=600.0, metavar="S", help="silence that is an error (600)")
    datasets.add_arguments(parser, 1000)
    reporting.add_arrivals(parser)
    group = parser.add_argument_group("load")
    add = group.add_argument
    add("--seed", type=int, default=0, metavar="SEED", help="of prompts, lengths and arrivals (0)")
    add("--max-concurrency", type=datasets.positive, metavar="N", help="requests at once, at most")
    add("--ignore-eos", action="store_true", help="always generate the full length")
    add("--temperature", type=float, default=0.0, metavar="T", help="(0: greedy)")
    add("--extra-body", type=fields, default={}, metavar="JSON", help="more fields to send")
    add("--num-warmups", type=datasets.natural, default=1, metavar="N", help="before it counts (1)")
    add = reporting.add_report(parser).add_argument
    add("--save-result", action="store_true", help="write the result as JSON")
    add("--save-detailed", action="store_true", help="with every request's times and text")
    add("--result-dir", type=Path, default=Path(), metavar="DIR", help="(.)")
    add("--result-filename", metavar="FILE", help="default: made of backend, rate, model and date")
    add("--metadata", nargs="*", default=[], metavar="KEY=VALUE", help="to keep with the result")
    add("--disable-tqdm", "--quiet", action="store_true", help="no progress bar")


def run(options: Namespace) -> int:
    wanted = reporting.read(options)
    metadata = parse_metadata(options.metadata)
    raise_file_limit()
    records, duration, model = run_loop(bench(options))
    report = measure(records, duration, wanted.limits)
    rate = math.inf if options.request_rate is None else options.request_rate
    metrics, percentiles, cap = wanted.metrics, wanted.percentiles, options.max_concurrency
    print(block(report, rate=rate, concurrency=cap, metrics=metrics, percentiles=percentiles))
    if options.save_result or options.save_detailed:
        result = summary(options, model, metadata) | flat(report, metrics, percentiles)
        if options.save_detailed:
            result |= detail(records)
        print(f"saved to {save(options, model, result)}", file=sys.stderr)
    reporting.failures(records)
    return 0 if report.completed else 1


def fields(text: str) -> dict[str, Any]:
    try:
        return msgspec.json.decode(text, type=dict[str, Any])
    except msgspec.DecodeError:
        raise ArgumentTypeError(f"expected a JSON object, got {text!r}") from None


async def bench(options: Namespace) -> tuple[list[Record], float, str]:
    """Find the model, make the workload, warm up and run. Raises `HttpError`, `ConfigError`."""
    base = options.base_url or f"http://{options.host}:{options.port}"
    headers = bearer(options.api_key)
    http = Http(base.rstrip("/"), headers, options.timeout)
    model = options.model or await first_model(http)
    sampled = options.ignore_eos, options.temperature, options.extra_body
    target = Target(http, options.backend, model, options.endpoint, *sampled)
    workload = reporting.timed(options, prepared(options, model), options.seed)
    for _ in range(options.num_warmups):
        await target.warm_up()
    with progress(len(workload.items), "requests", hidden=options.disable_tqdm) as bar:
        records, duration = await load(target, workload, options.max_concurrency, bar.advance)
    return records, duration, model


def prepared(options: Namespace, model: str) -> Workload:
    """The workload as the API takes it: text for chats and conversations, else unchanged."""

    @cache
    def tokenizer() -> Text:
        try:
            return datasets.tokenizer(options.tokenizer or model)
        except ConfigError as error:
            raise ConfigError(f"prompts need a tokenizer, give --tokenizer: {error}") from None

    workload = datasets.make(options, tokenizer, options.seed)
    conversation = any(item.turns for item in workload.items)
    if options.backend == "openai-chat" or conversation:
        return as_text(workload, lambda ids: tokenizer().decode(ids))
    return workload


def parse_metadata(words: list[str]) -> dict[str, str]:
    if wrong := [word for word in words if "=" not in word]:
        raise ConfigError(f"--metadata takes KEY=VALUE, got {wrong[0]!r}")
    return dict(word.split("=", 1) for word in words)


def summary(options: Namespace, model: str, metadata: dict[str, str]) -> dict[str, Any]:
    rate = options.request_rate
    return {
        "date": datetime.now().strftime("%Y%m%d-%H%M%S"),
        "endpoint_type": options.backend,
        "backend": options.backend,
        "model_id": model,
        "tokenizer_id": options.tokenizer or model,
        "dataset_name": options.dataset_name,
        "num_prompts": options.num_prompts,
        **metadata,
        "request_rate": rate if rate is not None and rate < math.inf else "inf",
        "burstiness": options.burstiness,
        "max_concurrency": options.max_concurrency,
    }


def detail(records: list[Record]) -> dict[str, Any]:
    return {
        "input_lens": [record.prompt_tokens for record in records],
        "output_lens": [record.output_tokens for record in records],
        "ttfts": [record.ttft for record in records],
        "itls": [record.itl for record in records],
        "start_times": [record.start for record in records],
        "generated_texts": [record.text for record in records],
        "errors": [record.error for record in records],
    }


def save(options: Namespace, model: str, result: dict[str, Any]) -> Path:
    cap = f"-concurrency{options.max_concurrency}" if options.max_concurrency else ""
    name = f"{options.backend}-{result['request_rate']}qps{cap}-{Path(model).name}-{result['date']}"
    path: Path = options.result_dir / (options.result_filename or f"{name}.json")
    reporting.write(path, result)
    return path


def raise_file_limit() -> None:
    """Raise the limit of open files, as each request in flight is an open connection."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
