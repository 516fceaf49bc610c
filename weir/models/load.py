"""Makes a model from what is on disk: a folder of safetensors, a GGUF file, or a config alone."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import msgspec
import torch

from weir.core import Spec
from weir.errors import ConfigError
from weir.gguf import GGUF
from weir.models.base import Model
from weir.models.checkpoint import Dummy, Quantised, Safetensors
from weir.models.gemma3 import Gemma3
from weir.models.llama import Llama
from weir.models.metadata import from_gguf
from weir.models.opt import OPT
from weir.models.shape import read_spec
from weir.models.weights import Checkpoint, Shelf, Weights, verify

MODELS: dict[str, type[Llama] | type[Gemma3] | type[OPT]] = {
    "llama": Llama,
    "mistral": Llama,
    "qwen2": Llama,
    "qwen3": Llama,
    "gemma3": Gemma3,
    "opt": OPT,
}
FORMATS = ("auto", "safetensors", "gguf", "dummy")
THREADS = 4  # readers beyond this many wait for memory


def load(
    path: str | Path,
    *,
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
    format: str = "auto",
    context: int | None = None,
    seed: int = 0,
    threads: int = 0,
    shelf: Callable[[int], Shelf] | None = None,
) -> Model:
    """The model at `path`, its weights of type `dtype` packed for `device`; None: bfloat16, and
    quantised weights as they are where `device` multiplies them.

    `format` is "auto", "safetensors", "gguf", or "dummy" for random weights (by `seed`) from the
    configuration alone. `context` shortens the longest sequence; `threads` read and pack (0: all
    cores). `shelf`, given the number of layers, makes what keeps them elsewhere. Raises ConfigError
    for files that are absent, unsound or do not fit their configuration.
    """
    path, device = Path(path), torch.device(device)
    if format not in FORMATS:
        raise ConfigError(f"load format {format!r} is unknown; use one of {', '.join(FORMATS)}")
    checkpoint: Checkpoint
    if format == "dummy":
        spec = spec_of(path)
        checkpoint = Dummy(MODELS[spec.architecture].tensors(spec), device, seed)
    elif format != "auto" and (format == "gguf") != (path.suffix == ".gguf"):
        raise ConfigError(f"{path} is not of format {format}; leave the load format at auto")
    else:
        spec, checkpoint = opened(path)
    kind = MODELS[spec.architecture]
    verify(checkpoint.shapes, kind.tensors(spec))
    threads = threads or min(THREADS, os.cpu_count() or 1)
    keep = dtype is None
    kept = shelf(spec.layers) if shelf is not None else None
    with Weights(checkpoint, dtype or torch.bfloat16, device, threads, keep, kept) as weights:
        return kind(_shortened(spec, context), weights)


def spec_of(path: str | Path) -> Spec:
    """The shape of the model at `path`. Raises ConfigError."""
    path = Path(path)
    return from_gguf(GGUF.open(path)) if path.suffix == ".gguf" else read_spec(path)


def opened(path: Path) -> tuple[Spec, Checkpoint]:
    """The shape of the model at `path` and its tensors, none of them read. Raises ConfigError."""
    if path.suffix == ".gguf":
        gguf = GGUF.open(path)
        spec = from_gguf(gguf)
        return spec, Quantised(gguf, spec)
    spec = read_spec(path)
    return spec, Safetensors(path, spec)


def _shortened(spec: Spec, context: int | None) -> Spec:
    if context is None:
        return spec
    if not 0 < context <= spec.context:
        raise ConfigError(
            f"max_model_len must be from 1 to the model's {spec.context}, not {context}"
        )
    return msgspec.structs.replace(spec, context=context)
