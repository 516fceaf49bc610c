"""How frontends talk to an engine, in this process (`Local`) or in its own (`Remote`)."""

from weir.client.assemble import Assembly
from weir.client.base import Client
from weir.client.events import Logprob, ModelInfo, Output, Timing, Usage
from weir.client.ledger import Limits
from weir.client.local import Local
from weir.client.remote import Remote
from weir.client.stream import Stream

__all__ = [
    "Assembly",
    "Client",
    "Limits",
    "Local",
    "Logprob",
    "ModelInfo",
    "Output",
    "Remote",
    "Stream",
    "Timing",
    "Usage",
]
