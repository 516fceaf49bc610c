"""What is said where an engine cannot be made."""

import pytest
import torch

from weir import build
from weir.config import Config
from weir.device import GIB, Phases, Platform, platform_of
from weir.errors import ConfigError


@pytest.mark.parametrize(
    ("cap", "free", "said"),
    [
        (0, 1, "1.0 of 140.0 GiB are free after device: free some, or choose a smaller model"),
        (3, 137, "--gpu-memory allows 3.0 GiB, of which 2.5 were taken after device: allow more"),
        (3, 0, "0.0 of 140.0 GiB are free after device: free some"),  # others took it
    ],
)
def test_memory_that_ran_out_is_told_by_what_bounds_it(
    cap: int, free: int, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def engine(config: Config, platform: Platform, phases: Phases) -> None:
        phases.done("device")
        raise torch.OutOfMemoryError("CUDA out of memory")

    cpu = platform_of(Config(device="cpu"))
    monkeypatch.setattr(build, "platform_of", lambda config: cpu)
    monkeypatch.setattr(build, "_engine", engine)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free * GIB, 140 * GIB))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: int(2.5 * GIB))
    with pytest.raises(ConfigError, match=f"is not enough: {said}"):
        build.engine(Config(gpu_memory=cap * GIB))
