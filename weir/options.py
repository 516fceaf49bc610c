"""Command-line flags made from `Config`, and `Config` made from flags.

Every field has one flag in kebab-case, other engines' names for it as aliases, and a line of help;
nothing about a setting is written down a second time.
"""

from __future__ import annotations

import os
from argparse import SUPPRESS, ArgumentParser, BooleanOptionalAction, Namespace
from typing import Any, Literal, get_args, get_origin

from weir.config import (
    FIELDS,
    SECTIONS,
    Config,
    default,
    describe,
    load,
    plain,
)
from weir.peers import ALIASES, NEUTRAL, OPPOSITES


def add_config(parser: ArgumentParser, positional: bool = True) -> None:
    """Flags for every setting. Only those given appear in the parsed namespace."""
    if positional:
        parser.add_argument(
            "model", nargs="?", default=SUPPRESS, metavar="MODEL", help="same as --model"
        )
    parser.add_argument("--config", metavar="FILE", help="YAML file of settings, one a line")
    group: Any = parser
    for name in FIELDS:
        if name in SECTIONS:
            group = parser.add_argument_group(SECTIONS[name])
        group.add_argument(*flags(name), dest=name, default=SUPPRESS, **shape(name))
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
    return load(given | more, os.environ, options.config)


def flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def flags(name: str) -> list[str]:
    return [flag(name), *(flag(alias) for alias, field in ALIASES.items() if field == name)]


def shape(name: str) -> dict[str, Any]:
    """How argparse reads a field; values stay text, `weir.config` alone converts them."""
    kind, start = plain(FIELDS[name].type), default(FIELDS[name])
    known = "" if start in (None, [], "") else f" (default: {shown(start)})"
    text = (describe(FIELDS[name]) + known).replace("%", "%%")
    if kind is bool:
        return {"action": BooleanOptionalAction, "help": text}
    if kind is list:
        return {"nargs": "+", "metavar": name.split("_")[-1].upper(), "help": text}
    choices = get_args(kind) if get_origin(kind) is Literal else ()
    metavar = "{" + ",".join(choices) + "}" if choices else name.split("_")[-1].upper()
    return {"metavar": metavar, "help": text}


def shown(value: object) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def reference() -> str:
    """Every setting as Markdown tables: flag, environment variable, default, meaning."""
    lines = []
    for name, info in FIELDS.items():
        if name in SECTIONS:
            lines += ["", f"### {SECTIONS[name].capitalize()}", ""]
            lines += ["| flag | environment | default | meaning |", "|---|---|---|---|"]
        spelled = ", ".join(f"`{spelling}`" for spelling in flags(name))
        start = f"`{shown(default(info))}`" if default(info) not in (None, [], "") else ""
        lines.append(f"| {spelled} | `WEIR_{name.upper()}` | {start} | {describe(info)} |")
    return "\n".join(lines[1:])
