"""Command-line flags made from `Config`, and `Config` made from flags.

Every field has one flag in kebab-case, other engines' names for it as aliases, and a line of help;
nothing about a setting is written down a second time.
"""

import os
from argparse import SUPPRESS, ArgumentParser, BooleanOptionalAction, Namespace
from itertools import chain
from typing import Any, Literal, get_args, get_origin

from weir.config import FIELDS, SECTIONS, Config, load
from weir.errors import ConfigError
from weir.fields import default, describe, plain, unit
from weir.peers import ALIASES, NEUTRAL, OPPOSITES


def add_config(parser: ArgumentParser, serves: bool = True) -> None:
    """Flags for every setting; help hides a server's where a command does not have one.

    Only those given appear in the parsed namespace."""
    parser.add_argument("MODEL", nargs="?", help="same as --model")
    parser.add_argument("--config", metavar="FILE", help="YAML file of settings, one a line")
    group: Any = parser
    hidden: dict[str, Any] = {}
    for name in FIELDS:
        if name in SECTIONS:
            group = parser.add_argument_group(SECTIONS[name])
            hidden = {} if serves or SECTIONS[name] != "server" else {"help": SUPPRESS}
        group.add_argument(*flags(name), dest=name, default=SUPPRESS, **shape(name) | hidden)
    for name, field in OPPOSITES.items():
        parser.add_argument(
            flag(name), dest=field, action="store_const", const="false", default=SUPPRESS,
            help=SUPPRESS,
        )  # fmt: skip
    for name in NEUTRAL:
        parser.add_argument(
            flag(name), dest=name, nargs="?", const="true", default=SUPPRESS, help=SUPPRESS
        )


def config(options: Namespace, **more: object) -> Config:
    """The configuration of parsed flags, the environment and the --config file.

    `more` are settings that a command decides itself; they win. Raises `ConfigError`.
    """
    known = {*FIELDS, *NEUTRAL}
    given = {name: value for name, value in vars(options).items() if name in known}
    lists = {name: value for name, value in given.items() if isinstance(value, list)}
    for name, words in lists.items():
        given[name] = [part.strip() for word in chain(*words) for part in word.split(",")]
    if options.MODEL is not None:
        model = given.setdefault("model", options.MODEL)
        if model != options.MODEL:
            raise ConfigError(f"two models are given, {options.MODEL} and --model {model}")
    elif "model" not in given:
        for name, words in lists.items():
            if len(words[-1]) > 1:  # the model may be among them
                raise ConfigError(
                    f"{flag(name)} takes every word after it: put MODEL first, or without one"
                    f" repeat {flag(name)} for each word"
                )
    return load(given | more, os.environ, options.config)


def flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def flags(name: str) -> list[str]:
    return [flag(name), *(flag(alias) for alias, field in ALIASES.items() if field == name)]


def shape(name: str) -> dict[str, Any]:
    """How argparse reads a field; values stay text, `weir.fields` alone converts them."""
    kind, known = plain(FIELDS[name].type), start(name)
    text = describe(FIELDS[name]) + (f" (default: {known})" if known else "")
    text = text.replace("%", "%%")
    if kind is bool:
        return {"action": BooleanOptionalAction, "help": text}
    metavar = unit(FIELDS[name]) or name.split("_")[-1].upper()
    if kind is list:
        return {"nargs": "+", "action": "append", "metavar": metavar, "help": text}
    choices = get_args(kind) if get_origin(kind) is Literal else ()
    return {"metavar": "{" + ",".join(choices) + "}" if choices else metavar, "help": text}


def start(name: str) -> str:
    """A setting's default as one would write it; empty: there is none."""
    value = default(FIELDS[name])
    if value in (None, [], ""):
        return ""
    if isinstance(value, bool):
        return "on" if value else "off"
    if unit(FIELDS[name]) == "SIZE" and value:
        return f"{value // 2**20}MiB" if value % 2**30 else f"{value // 2**30}GiB"
    if isinstance(value, float):
        return f"{value:g}"
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)
