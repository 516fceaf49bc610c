"""`weir rank`: collect lengths of answers, train a ranker on them, see how well it ranks."""

from argparse import ArgumentParser
from pathlib import Path


def add_data(parser: ArgumentParser) -> None:
    """What `train` and `eval` read."""
    add = parser.add_argument
    add("data", type=Path, metavar="DATA", help="folder or JSON lines")
    add("--exclude", nargs="+", default=["bbh"], metavar="SOURCE", help="leave out (bbh)")
    add("--hold", nargs="+", default=[], metavar="MODEL", help="models never trained on (none)")
