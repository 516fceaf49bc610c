"""Fetch a model into the local cache; show where it is and under which licence."""

from argparse import ArgumentParser, Namespace

from weir import hub

USAGE = "weir pull NAME"


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="embedded name or hub id")


def run(options: Namespace) -> int:
    source = hub.resolve(options.name, progress=True)
    print(f"{source.name}\n  path     {source.path}\n  licence  {source.licence or 'not stated'}")
    return 0
