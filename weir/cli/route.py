"""Serve several running servers behind one address.

A request goes to the server that has most of its prompt cached, unless loads differ too much, and
to another one if that is full, starting, draining or gone. Keys, streams and errors pass through.
"""

import logging
from argparse import ArgumentParser, ArgumentTypeError, Namespace

from weir import http
from weir.balance import ROUTERS
from weir.bench.datasets import positive
from weir.fields import parse_size
from weir.router import BLOCK, Router, serve
from weir.server import logs
from weir.server.main import address, listen

USAGE = "weir route URL [URL ...] [OPTIONS]"

log = logging.getLogger(__name__)


def add_arguments(parser: ArgumentParser) -> None:
    add = parser.add_argument
    add("urls", nargs="+", metavar="URL", help="servers, such as http://10.0.0.1:8000")
    add("--policy", choices=ROUTERS, default="cache-aware", help="(cache-aware)")
    add(
        "--cache-tokens", type=positive, default=400_000, metavar="N",
        help="tokens that the cache of each server holds (400000)",
    )  # fmt: skip
    add("--host", default="127.0.0.1", metavar="HOST", help="address to listen on (127.0.0.1)")
    add("--port", type=int, default=8080, metavar="PORT", help="0: any free one (8080)")
    add(
        "--max-body-bytes", type=size, default=2**25, metavar="SIZE",
        help="largest request body (32MiB)",
    )  # fmt: skip
    add(
        "--timeout", type=float, default=600.0, metavar="S",
        help="seconds that a server may say nothing about a request (600)",
    )  # fmt: skip
    add(
        "--shutdown-timeout", type=float, default=30.0, metavar="S",
        help="seconds that running requests get after SIGTERM (30)",
    )  # fmt: skip
    add("--log-format", choices=("text", "json"), default="text", help="(text)")


def size(text: str) -> int:
    try:
        return parse_size(text)
    except ValueError as error:
        raise ArgumentTypeError(str(error)) from None


def run(options: Namespace) -> int:
    for url in options.urls:
        http.address(url)
    logs.configure("info", options.log_format)
    listening = listen(options.host, options.port)
    policy = ROUTERS[options.policy](max(1, options.cache_tokens // 16), BLOCK)
    router = Router(options.urls, policy, options.max_body_bytes, options.timeout)
    log.info("routing to %d servers on %s", len(router.replicas), address(listening))
    http.run(serve(router, listening, options.shutdown_timeout))
    return 0
