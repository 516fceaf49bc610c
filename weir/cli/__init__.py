"""The `weir` command. Each sub-command is one module of this package, loaded when it is called.

This file must stay free of other imports: `weir --help` answers in a fraction of a second.
"""

import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Sequence
from difflib import get_close_matches
from importlib import import_module
from types import ModuleType
from typing import NoReturn

from weir.errors import WeirError

COMMANDS = {
    "serve": "start the OpenAI-compatible server",
    "route": "serve several running servers behind one address",
    "chat": "talk to a model in the terminal",
    "generate": "complete prompts from the command line, a file or standard input",
    "run-batch": "answer a file of OpenAI batch requests; a stopped run goes on where it was",
    "pull": "fetch a model and show its licence",
    "bench": "measure a server, the engine alone, its kernels, or the time to start",
    "profile": "measure how long steps take on this machine",
    "simulate": "replay a workload in virtual time, for any model, device and policy",
    "rank": "collect lengths of answers, train what predicts them, see how well it ranks",
    "capacity": "find the highest request rate that keeps latency within a target",
    "plan": "find where weights and KV of a model too large for the GPU should lie",
    "top": "watch a running server",
    "doctor": "show what this machine offers, what will be used and what is missing",
    "version": "show the version",
}
BENCHMARKS = {
    "serve": "load a running server and report latency and throughput",
    "offline": "measure the engine alone, without a server",
    "online": "measure latency under load on a server of its own, beside what others reached",
    "kernels": "check every op on a GPU, then time it as a share of what the chip reaches",
    "startup": "measure the time until a server is ready and answers, cold and warm",
}
RANKING = {
    "train": "fit a ranker to prompts and lengths of answers",
    "eval": "say how well rankers order prompts they were not trained on",
    "collect": "record the lengths of a server's answers",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status. Errors made on purpose are one line on stderr."""
    words = [dashed(word) for word in (sys.argv[1:] if arguments is None else arguments)]
    if words[:1] == ["bench"]:
        return dispatch("weir bench", "weir.bench", BENCHMARKS, words[1:])
    if words[:1] == ["rank"]:
        return dispatch("weir rank", "weir.cli.rank", RANKING, words[1:])
    return dispatch("weir", "weir.cli", COMMANDS, words)


def dispatch(program: str, package: str, commands: dict[str, str], words: list[str]) -> int:
    """Run the command that the first word names; it lives in the module of `package` so named."""
    name, rest = (words[0], words[1:]) if words else ("help", [])
    if name in ("-V", "--version"):
        name = "version"
    if name in ("-h", "--help", "help"):
        if not rest or rest[0] not in commands:
            print(overview(program, commands))
            return 0
        name, rest = rest[0], ["--help"]
    if name not in commands:
        close = get_close_matches(name, commands, 1)
        hint = f"did you mean `{program} {close[0]}`?" if close else f"see `{program} --help`"
        print(f"{program}: no such command: {name}; {hint}", file=sys.stderr)
        return 2
    return call(f"{package}.{name.replace('-', '_')}", f"{program} {name}", rest)


def call(module: str, program: str, arguments: Sequence[str]) -> int:
    """Parse and run a command module: `add_arguments(parser)` and `run(options) -> int`."""
    try:
        command = import_module(module)
        return int(command.run(parser(command, program).parse_args(arguments)))
    except WeirError as error:
        line = " ".join(map(str.strip, str(error).splitlines()))  # a library may say several
        print(f"{program}: {line}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        sys.stderr.close()  # whoever read our output has left; say nothing more at exit
        return 141
    except OSError as error:  # of a disk or a network, such as "No space left on device: 'x'"
        print(f"{program}: {error}", file=sys.stderr)
        return 1


class Parser(ArgumentParser):
    """A parser that guesses what was meant by a flag that it does not have."""

    def error(self, message: str) -> NoReturn:
        _, _, words = message.partition("unrecognized arguments: ")
        hint = self._meant(next(iter(words.replace("=", " ").split()), ""))
        super().error(f"{message}; {hint or f'see `{self.prog} --help`'}")

    def _meant(self, word: str) -> str:
        """What a flag that is not there probably stands for."""
        options = [option for action in self._actions for option in action.option_strings]
        for action in self._actions:
            if action.dest == word.lstrip("-") and not action.option_strings:
                return f"give {action.metavar or action.dest} without {word}"
        known = import_module("weir.peers").MEANT.get(word)
        close = get_close_matches(word, options, 1, cutoff=0.75) if known is None else [known]
        return f"did you mean {close[0]}?" if close and close[0] in options else ""


def parser(command: ModuleType, program: str) -> ArgumentParser:
    made = Parser(
        prog=program,
        usage=getattr(command, "USAGE", None),
        description=command.__doc__,
        formatter_class=RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    command.add_arguments(made)
    return made


def overview(program: str, commands: dict[str, str]) -> str:
    lines = [f"  {name:<11}{text}" for name, text in commands.items()]
    return "\n".join(
        [f"usage: {program} COMMAND [OPTIONS]", "", *lines, "", "COMMAND --help shows its options."]
    )


def dashed(word: str) -> str:
    """An option spelled with underscores as one with dashes; anything else unchanged."""
    if not word.startswith("--"):
        return word
    name, equals, value = word.partition("=")
    return name.replace("_", "-") + equals + value
