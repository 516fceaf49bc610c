"""Show the version of Weir and of the Python that runs it."""

from __future__ import annotations

import platform
from argparse import ArgumentParser, Namespace
from importlib.metadata import PackageNotFoundError, version


def add_arguments(parser: ArgumentParser) -> None:
    pass


def run(options: Namespace) -> int:
    print(f"weir {installed()} (Python {platform.python_version()}, {platform.machine()})")
    return 0


def installed() -> str:
    try:
        return version("weir-llm")
    except PackageNotFoundError:
        return "0+unknown"
