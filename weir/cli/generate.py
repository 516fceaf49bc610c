"""Complete prompts from the command line, a file or standard input, all in one batch.

Prints the completions in order, each as soon as it is ready, or with --jsonl one JSON object per
prompt. If stopped, it does not continue where it was; `weir run-batch` can.
"""

import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path

import msgspec
from msgspec.structs import asdict, replace

import weir
from weir.errors import ConfigError
from weir.llm.outputs import RequestOutput
from weir.options import add_config, config

USAGE = "weir generate MODEL [--prompt TEXT | --file FILE] [OPTIONS]"


def add_arguments(parser: ArgumentParser) -> None:
    group = parser.add_argument_group("prompts")
    add = group.add_argument
    add("--prompt", "-p", action="append", metavar="TEXT", help="a prompt; may be repeated")
    add("--file", type=Path, metavar="FILE", help="a prompt a line; default: standard input")
    add("--chat", action="store_true", help="treat prompts as what a user says in a chat")
    group = parser.add_argument_group("answers")
    add = group.add_argument
    add("--max-tokens", type=int, default=128, metavar="N", help="longest completion (128)")
    add("--temperature", type=float, metavar="T", help="0: likeliest token (the model's, else 1)")
    add("--top-p", type=float, metavar="P", help="likeliest P of probability (the model's, else 1)")
    add("--top-k", type=int, metavar="K", help="likeliest K; 0: all (the model's, else 0)")
    add("--n", type=int, default=1, metavar="N", help="completions a prompt (1)")
    add("--stop", action="append", default=[], metavar="TEXT", help="end at this; may be repeated")
    add("--ignore-eos", action="store_true", help="always generate --max-tokens")
    add("--jsonl", action="store_true", help="print JSON lines")
    add("--quiet", action="store_true", help="no progress bar")
    add_config(parser, serves=False)


def run(options: Namespace) -> int:
    settings = config(options)
    prompts = read(options)
    left = iter(prompts)

    def show(output: RequestOutput) -> None:
        text = as_json(next(left), output) if options.jsonl else as_text(output)
        print(text, flush=True)

    with weir.LLM(**asdict(settings)) as llm:
        names = ("n", "temperature", "top_p", "top_k", "max_tokens", "stop", "ignore_eos")
        asked = {name: getattr(options, name) for name in names}
        asked = {name: value for name, value in asked.items() if value is not None}
        params = replace(llm.model.sampling, **asked)
        if options.chat:
            talks = [[{"role": "user", "content": prompt}] for prompt in prompts]
            llm.chat(talks, params, progress=not options.quiet, told=show)
        else:
            llm.generate(prompts, params, progress=not options.quiet, told=show)
    return 0


def read(options: Namespace) -> list[str]:
    if options.prompt and options.file:
        raise ConfigError("give either --prompt or --file")
    if options.prompt:
        return list(options.prompt)
    try:
        text = options.file.read_text("utf-8") if options.file else sys.stdin.read()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the prompts cannot be read: {error}") from None
    prompts = [line for line in text.splitlines() if line.strip()]
    if not prompts:
        raise ConfigError("there is no prompt: give --prompt, --file or lines on standard input")
    return prompts


def as_text(output: RequestOutput) -> str:
    return "\n".join(choice.text for choice in output.outputs)


def as_json(prompt: str, output: RequestOutput) -> str:
    choices = [
        {
            "index": c.index,
            "text": c.text,
            "finish_reason": c.finish_reason,
            "tokens": len(c.token_ids),
        }
        for c in output.outputs
    ]
    return msgspec.json.encode({"prompt": prompt, "outputs": choices}).decode()
