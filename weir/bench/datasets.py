"""Command-line flags that choose a workload, and the workload made from them."""

import math
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from weir import connect
from weir.bench import named
from weir.config import Config
from weir.errors import ConfigError
from weir.sim import workload
from weir.sim.servegen import servegen
from weir.sim.workload import Tokenizer, Words, Workload
from weir.text import Text

NAMES = (
    *("random", "sharegpt", "azure", "mooncake", "servegen", "gsp", "prefix_repetition"),
    *("gsm8k", "mt_bench", "custom", *named.RECORDED),
)
FILES = {"sharegpt", "azure", "mooncake", "servegen", "gsm8k", "mt_bench", "custom"}


def add_arguments(parser: ArgumentParser, count: int) -> None:
    group = parser.add_argument_group("workload")
    add = group.add_argument
    add(
        "--dataset-name", "--trace", choices=NAMES, default="random", metavar="NAME",
        help=f"kind of workload: {', '.join(NAMES)} (random)",
    )  # fmt: skip
    add(
        "--dataset-path", "--trace-path", type=Path, metavar="PATH",
        help="file of it; gsm8k: or folder",
    )  # fmt: skip
    add("--num-prompts", type=positive, default=count, metavar="N", help=f"at most ({count})")
    add(
        "--output-len", "--sharegpt-output-len", "--custom-output-len",
        type=positive, metavar="N", help="tokens to generate, whatever the data set says",
    )  # fmt: skip
    add("--random-input-len", type=positive, default=1024, metavar="N", help="prompt tokens (1024)")
    add("--random-output-len", type=positive, default=128, metavar="N", help="tokens out (128)")
    add("--random-prefix-len", type=natural, default=0, metavar="N", help="shared by all (0)")
    add(
        "--random-range-ratio", type=float, default=0.0, metavar="R",
        help="lengths uniform between (1-R) and (1+R) times the given, as vLLM has it (0)",
    )  # fmt: skip
    add("--gsp-num-groups", type=positive, default=8, metavar="N", help="gsp: shared prefixes (8)")
    add("--gsp-prompts-per-group", type=positive, default=16, metavar="N", help="(16)")
    add("--gsp-system-prompt-len", type=positive, default=512, metavar="N", help="(512)")
    add("--gsp-question-len", type=positive, default=64, metavar="N", help="(64)")
    add("--gsp-output-len", type=positive, default=64, metavar="N", help="(64)")
    add("--prefix-repetition-prefix-len", type=positive, default=256, metavar="N", help="(256)")
    add("--prefix-repetition-suffix-len", type=positive, default=256, metavar="N", help="(256)")
    add("--prefix-repetition-num-prefixes", type=positive, default=10, metavar="N", help="(10)")
    add("--prefix-repetition-output-len", type=positive, default=128, metavar="N", help="(128)")
    add("--servegen-workload", default="", metavar="NAME", help="default: the file's first")
    add("--servegen-start", type=float, metavar="S", help="second of the trace to begin at")
    add(
        "--trace-scale", type=positive, default=1, metavar="N",
        help="divide the lengths of a trace, for small models (1)",
    )  # fmt: skip


def tokenizer(model: str) -> Text:
    """The tokenizer of a model by its folder, file or name. Raises `ConfigError`."""
    return connect.text(Config(model=model, load_format="dummy"))  # numbers if it has none


def positive(text: str) -> int:
    return _number(text, 1)


def natural(text: str) -> int:
    return _number(text, 0)


def _number(text: str, least: int) -> int:
    if not text.isdecimal() or int(text) < least:
        raise ArgumentTypeError(f"expected a whole number from {least} on, got {text!r}")
    return int(text)


def make(options: Namespace, tokenizer: Callable[[], Tokenizer], seed: int) -> Workload:
    """The workload of the flags; calls `tokenizer` only if needed. Raises `ConfigError`."""
    name, path = options.dataset_name, options.dataset_path
    count, output = options.num_prompts, options.output_len
    if name in FILES and path is None:
        raise ConfigError(f"--dataset-name {name} needs --dataset-path")
    if not 0 <= options.random_range_ratio < 1 or math.isnan(options.random_range_ratio):
        raise ConfigError("--random-range-ratio must be at least 0 and below 1")
    if name == "gsm8k":
        return workload.fewshot(path, count, output or 128)
    if name == "mt_bench":
        return workload.mt_bench(path, count, output or 256)
    if name == "custom":
        return workload.custom(path, count, output or 256)
    if name == "sharegpt":
        return workload.sharegpt(path, tokenizer(), count, seed, output)
    if name in named.RECORDED:
        made = named.make(name, tokenizer().vocab)
        return replace(made, items=made.items[:count])
    made = synthetic(options, Words(tokenizer(), seed))
    return workload.lengthened(made, output) if output else made


def synthetic(options: Namespace, words: Words) -> Workload:
    """Workloads whose prompts are random tokens."""
    name, count = options.dataset_name, options.num_prompts
    if name == "azure":
        return workload.trace(options.dataset_path, words, count, options.trace_scale)
    if name == "mooncake":
        return workload.mooncake(options.dataset_path, words, count, options.trace_scale)
    if name == "servegen":
        kind, begin = options.servegen_workload, options.servegen_start
        return servegen(options.dataset_path, words, count, kind, begin)
    if name == "gsp":
        return workload.shared(
            *(words, name, options.gsp_num_groups, options.gsp_prompts_per_group),
            *(options.gsp_system_prompt_len, options.gsp_question_len, options.gsp_output_len),
        )
    if name == "prefix_repetition":
        groups = min(options.prefix_repetition_num_prefixes, count)
        return workload.shared(
            *(words, name, groups, count // groups, options.prefix_repetition_prefix_len),
            *(options.prefix_repetition_suffix_len, options.prefix_repetition_output_len),
        )
    return workload.random(
        *(words, count, options.random_input_len, options.random_output_len),
        *(options.random_range_ratio, options.random_prefix_len),
    )
