"""Talk to a model in the terminal.

With --url the model is a running server's; otherwise a server is started only for this talk, with
settings from the environment, such as WEIR_DTYPE.
In the talk, /reset forgets it, /system TEXT sets the system prompt and /quit leaves. Ctrl-C stops
an answer; Ctrl-D leaves.
"""

import asyncio
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from contextlib import ExitStack, aclosing
from functools import partial
from typing import Any

from weir.bench.private import private
from weir.bench.talk import Talk, first_model
from weir.http import Http, HttpError, bearer

USAGE = "weir chat [MODEL] [OPTIONS]"


def add_arguments(parser: ArgumentParser) -> None:
    add = parser.add_argument
    add("model", nargs="?", metavar="MODEL", help="model to talk to (smollm2-135m)")
    add("--url", metavar="URL", help="a running server, such as http://127.0.0.1:8000")
    add("--api-key", metavar="KEY", help="sent as a bearer token")
    add("--system", metavar="TEXT", help="system prompt")
    add("--max-tokens", type=int, metavar="N", help="longest answer")
    add("--temperature", type=float, metavar="T", help="0: always the likeliest token")
    add("--top-p", type=float, metavar="P", help="sample from the likeliest P of probability")
    add("--seed", type=int, metavar="SEED", help="for answers that can be repeated")


def run(options: Namespace) -> int:
    headers = bearer(options.api_key)
    with ExitStack() as stack:
        url = options.url
        if url is None:
            name = options.model or "smollm2-135m"
            print(f"starting {name} …", file=sys.stderr)
            server = stack.enter_context(private(name))
            url, headers = server.url, server.headers
        http = Http(url.rstrip("/"), headers)
        model = options.model or asyncio.run(first_model(http))
        talk = Talk(http, model, settings(options))
        talk.reset(options.system)
        converse(talk, input, partial(print, end="", flush=True))
    return 0


def settings(options: Namespace) -> dict[str, Any]:
    names = ("max_tokens", "temperature", "top_p", "seed")
    return {name: value for name in names if (value := getattr(options, name)) is not None}


def converse(talk: Talk, listen: Callable[[str], str], show: Callable[[str], None]) -> None:
    """Read lines and answer them, until /quit or the end of input."""
    show(f"{talk.model} · /reset /system TEXT /quit · Ctrl-C stops an answer\n")
    while True:
        try:
            line = listen("> ").strip()
        except (EOFError, KeyboardInterrupt):
            show("\n")
            return
        command, _, rest = line.partition(" ")
        if command in ("/quit", "/exit"):
            return
        if command == "/reset":
            talk.reset()
            show("forgotten\n")
        elif command == "/system":
            talk.messages = []
            talk.reset(rest.strip())
            show("system prompt set\n" if rest.strip() else "system prompt removed\n")
        elif command.startswith("/"):
            show(f"no such command: {command}; there are /reset, /system TEXT and /quit\n")
        elif line:
            speak(talk, line, show)


def speak(talk: Talk, line: str, show: Callable[[str], None]) -> None:
    """Stream one answer. An error or Ctrl-C ends the answer, not the talk."""

    async def stream() -> None:
        async with aclosing(talk.answer(line)) as pieces:
            async for piece in pieces:
                show(piece)

    try:
        asyncio.run(stream())
        show("\n")
    except KeyboardInterrupt:
        show(" [stopped]\n")
    except HttpError as error:
        show(f"\n[{error}]\n")
