"""Show the version of Weir and of the Python that runs it."""

import platform
from argparse import ArgumentParser, Namespace

from weir import __version__


def add_arguments(parser: ArgumentParser) -> None:
    pass


def run(options: Namespace) -> int:
    print(f"weir {__version__} (Python {platform.python_version()}, {platform.machine()})")
    return 0
