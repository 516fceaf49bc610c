"""Command-line flags that describe the simulated fleet, and the fleet made from them."""

from argparse import ArgumentParser, Namespace
from dataclasses import dataclass
from pathlib import Path

from weir import hub, policies
from weir.balance import ROUTERS, Router
from weir.config import Config
from weir.core import Capacity, Tier
from weir.cost.fetch import Fetch
from weir.cost.hardware import PRESETS, Hardware, find
from weir.cost.lanes import Host, Lanes
from weir.cost.roofline import Roofline
from weir.cost.target import Cost, Target
from weir.cost.transfer import Transfers
from weir.cost.work import cache_bytes, weights
from weir.linux import cores
from weir.options import add_config, config
from weir.sim.fleet import CORES, attended, capacity, defaults_of, number, replica
from weir.sim.replay import Replica
from weir.sim.shapes import SHAPES, shape
from weir.spec import Spec


@dataclass(slots=True, frozen=True)
class Scene:
    """All of a simulation but the workload. Use a fleet only once: its caches and clocks change."""

    config: Config
    spec: Spec
    capacity: Capacity
    cost: Cost
    hardware: Hardware
    replicas: int = 1
    routing: str = "round-robin"

    def fleet(self) -> list[Replica]:
        return [self._replica() for _ in range(self.replicas)]

    def router(self) -> Router:
        held = max(self.capacity.pages.values()) * self.capacity.page
        return ROUTERS[self.routing](held // 16, 16)

    def _replica(self) -> Replica:
        config, size, cost = self.config, self.capacity, self.cost
        pace = policies.pace(config, defaults_of(self.hardware), size.tokens, lambda: cost)
        target = pace if isinstance(pace, Target) else None
        spec, device = self.spec, self.hardware
        away = number(config, device.name == "cpu").away
        token = cache_bytes(spec, away)
        transfers = Transfers(
            int(token * size.page), device.link_rate, device.disk_read, device.disk_write
        )
        fetch = Fetch(token, transfers.loaded)
        lanes = None
        if config.cpu_attention != "off":
            read = cache_bytes(spec, attended(spec, away, device.host_rate, CORES))
            host = Host(device.host_rate, read, spec.layers)
            lanes = Lanes(cost, host, Tier.CPU)
        scheduler = policies.scheduler(config, size, pace, below=fetch, lanes=lanes)
        depth = 2 if config.overlap else 1
        return replica(scheduler, cost, spec.vocab, depth, target, transfers, fetch, lanes)


class Vocabulary:
    """The vocabulary of random prompts; there is no tokenizer."""

    special: frozenset[int] = frozenset()

    def __init__(self, size: int):
        self.vocab = size

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        raise NotImplementedError("a simulation has no tokenizer")

    def decode(self, ids: object, skip_special_tokens: bool = True) -> str:
        raise NotImplementedError("a simulation has no tokenizer")


QUANTISED = {"fp8": 1.0, "int4": 4.5 / 8}
"""Bytes of a weight of a layer, including the scale and offset of its group of 64."""


def add_arguments(parser: ArgumentParser) -> None:
    group = parser.add_argument_group("what is simulated")
    add = group.add_argument
    add(
        "--hardware", default="h100", metavar="NAME",
        help=f"{', '.join(PRESETS)}, or cpu: this machine's, measured (h100)",
    )  # fmt: skip
    add("--replicas", type=int, default=1, metavar="N", help="engines behind a router (1)")
    add("--router", choices=ROUTERS, default="round-robin", help="(round-robin)")
    add_config(parser)
    parser.epilog = f"Models known by shape alone: {', '.join(SHAPES)}."


def scene(options: Namespace) -> Scene:
    """The scene that the flags describe. Raises `ConfigError` if it is not possible."""
    settings = config(options)
    spec = shape(settings.model, settings.revision, settings.download_dir)
    hardware = find(options.hardware)
    size, cpu = weight_bytes(settings, spec, hardware.name), hardware.name == "cpu"
    threads = cores() if cpu else CORES
    here = attended(spec, number(settings, cpu).here, hardware.cache_rate, threads)
    return Scene(
        settings,
        spec,
        capacity(settings, spec, hardware, size),
        Roofline(spec, hardware, size, here),
        hardware,
        max(1, options.replicas),
        options.router,
    )


def weight_bytes(settings: Config, spec: Spec, hardware: str) -> float:
    """Bytes of one weight, quantised as requested; a CPU keeps a GGUF file's codes."""
    if settings.quantization in QUANTISED:
        return QUANTISED[settings.quantization]
    if hardware == "cpu" and settings.dtype == "auto" and settings.model not in SHAPES:
        source = hub.resolve(settings.model, settings.revision, settings.download_dir)
        if source.kind == "gguf":
            return Path(source.path).stat().st_size / weights(spec)
    return 4.0 if settings.dtype == "float32" else 2.0
