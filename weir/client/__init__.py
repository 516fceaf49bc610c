"""How frontends talk to an engine, in this process (`Local`) or in its own (`Remote`)."""

from weir.client.base import (
    Client,
    Completion,
    Finished,
    Logprob,
    ModelInfo,
    Output,
    Stream,
    Timing,
    Usage,
)

__all__ = [
    "Client",
    "Completion",
    "Finished",
    "Logprob",
    "ModelInfo",
    "Output",
    "Stream",
    "Timing",
    "Usage",
]
