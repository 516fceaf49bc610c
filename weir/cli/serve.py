"""Start the OpenAI-compatible server.

Every option can also be set in the --config file and by an environment variable (--block-size by
WEIR_BLOCK_SIZE). Flags override the environment, which overrides the file.
"""

from argparse import ArgumentParser, Namespace

from weir.options import add_config, config
from weir.server.main import serve

USAGE = "weir serve [MODEL] [OPTIONS]"


def add_arguments(parser: ArgumentParser) -> None:
    add_config(parser)


def run(options: Namespace) -> int:
    serve(config(options))
    return 0
