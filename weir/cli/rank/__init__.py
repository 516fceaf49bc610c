"""`weir rank`: collect lengths of answers, train a ranker on them, and evaluate it."""

from argparse import ArgumentParser
from pathlib import Path


def add_data(parser: ArgumentParser) -> None:
    """Add the arguments that choose the data of `train` and `eval`."""
    add = parser.add_argument
    add("data", type=Path, metavar="DATA", help="folder or JSON lines")
    add("--exclude", nargs="+", default=["bbh"], metavar="SOURCE", help="leave out (bbh)")
    add("--hold", nargs="+", default=[], metavar="MODEL", help="models never trained on (none)")
