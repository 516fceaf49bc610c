"""Caches the prefix that the programs of a batch begin with before they run."""

from collections.abc import Iterator

from weir.errors import WeirError
from weir.lang import ir
from weir.lang.stream import Item, Stream, hint

WORTH_CACHING = 64
"""Characters that a shared prefix must have to be cached first (SGLang's)."""


async def together(streams: list[Stream]) -> None:
    """Start to cache the prefix that two held streams share, then release both."""
    first = Stream(streams[0].backend, {})
    try:
        for node in _alike(*([item.node for item in stream.items] for stream in streams)):
            await first._do(Item(node, "", {}))
        if len(first.prompt.text) > WORTH_CACHING:
            hint(first.backend, first.prompt)
    except WeirError:
        pass  # the streams meet it themselves, with its line
    finally:
        for stream in streams:
            stream.release()


def _alike(first: list[ir.Node], second: list[ir.Node]) -> Iterator[ir.Node]:
    """The nodes that two programs share before either asks for a value."""
    for one, other in zip(first, second, strict=False):
        match one, other:
            case ir.Text(value=text), ir.Text(value=other_text):
                pairs, least = enumerate(zip(text, other_text, strict=False)), len(other_text)
                yield ir.Text(text[: next((at for at, (a, b) in pairs if a != b), least)])
                if text != other_text:
                    return
            case (ir.Open(role=role), ir.Open(role=other_role)) if role == other_role:
                yield one
            case (ir.Close(), ir.Close()):
                yield one
            case _:
                return
