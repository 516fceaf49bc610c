"""Start the OpenAI-compatible server.

Every option is also a line of the --config file and an environment variable (--block-size is
WEIR_BLOCK_SIZE); a flag wins over the environment, the environment over the file.
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
