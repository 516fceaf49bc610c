"""Watch a running server: requests, tokens a second, latencies, cache, steps."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace

from weir.top import watch

USAGE = "weir top [--url URL]"


def add_arguments(parser: ArgumentParser) -> None:
    add = parser.add_argument
    add("--url", default="http://127.0.0.1:8000", metavar="URL", help="(http://127.0.0.1:8000)")
    add("--api-key", metavar="KEY", help="sent as a bearer token")
    add("--interval", type=float, default=1.0, metavar="S", help="seconds between looks (1)")
    add("--once", action="store_true", help="print one frame and leave")


def run(options: Namespace) -> int:
    watch(options.url.rstrip("/"), options.api_key, max(0.1, options.interval), options.once)
    return 0
