"""Makes a model from a folder of safetensors, a GGUF file, or a `config.json` alone."""

from collections.abc import Callable
from pathlib import Path

import torch
from msgspec.structs import replace

from weir.errors import ConfigError
from weir.gguf import GGUF
from weir.linux import cores
from weir.models.base import Model
from weir.models.checkpoint import Dummy, GGUFCheckpoint, Safetensors
from weir.models.gemma3 import Gemma3
from weir.models.llama import Llama
from weir.models.metadata import from_gguf
from weir.models.opt import OPT
from weir.models.packed import Packed
from weir.models.shape import read_spec, scheme_of
from weir.models.weights import Checkpoint, LayerStore, Weights, verify
from weir.ops.linear import takes_codes, takes_fp8
from weir.ops.quantize import GROUP
from weir.spec import Spec

MODELS: dict[str, type[Llama] | type[Gemma3] | type[OPT]] = {
    "llama": Llama,
    "mistral": Llama,
    "qwen2": Llama,
    "qwen3": Llama,
    "gemma3": Gemma3,
    "opt": OPT,
}
FORMATS = ("auto", "safetensors", "gguf", "dummy")
MADE = ("fp8", "int4")
STORED = ("awq", "gptq", "compressed-tensors", "gguf")
QUANTIZATIONS = ("auto", "none", *MADE, *STORED)
THREADS = 4  # readers beyond this many wait for memory


def load(
    path: str | Path,
    *,
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
    format: str = "auto",
    quantization: str = "auto",
    context: int | None = None,
    layers: int | None = None,
    seed: int = 0,
    threads: int = 0,
    layer_store: Callable[[int], LayerStore] | None = None,
) -> Model:
    """The model at `path`, with weights of type `dtype` (None: bfloat16) packed for `device`.

    quantization: one of `QUANTIZATIONS`; see `Weights`. One of `STORED` is "auto" for files that
    must be stored so. "auto" unpacks weights on a CPU if `dtype` is given, and GGUF files on a GPU.
    format: "auto", "safetensors", "gguf", or "dummy" for random weights (from `seed`) from the
    configuration alone. context: shortens the longest sequence. layers: keeps only the first ones.
    threads: read and pack (0: as many as cores, at most `THREADS`). layer_store: makes a store for
    a number of layers.

    Raises ConfigError for files that are missing, damaged or do not fit their configuration, and
    for weights that the device cannot multiply.
    """
    path, device = Path(path), torch.device(device)
    if format not in FORMATS:
        raise ConfigError(f"load format {format!r} is unknown; use one of {', '.join(FORMATS)}")
    gguf, claimed = path.suffix == ".gguf", ""
    if quantization in STORED:
        quantization, claimed = "auto", quantization
    if quantization == "auto" and (dtype is not None if device.type == "cpu" else gguf):
        quantization = "none"
    _check(quantization, device, dtype)
    checkpoint: Checkpoint
    if format == "dummy":
        spec = read_spec(path)
        checkpoint = Dummy(MODELS[spec.architecture].tensors(spec), device, seed)
    elif format != "auto" and (format == "gguf") != gguf:
        raise ConfigError(f"{path} is not of format {format}; leave the load format at auto")
    else:
        spec, checkpoint = opened(path)
    if (quantization in MADE and checkpoint.stored) or claimed not in ("", checkpoint.stored):
        how = f"quantised as {checkpoint.stored}" if checkpoint.stored else "not quantised"
        raise ConfigError(
            f"--quantization {claimed or quantization}: the weights at {path} are {how}: "
            "leave --quantization at auto"
        )
    kind, spec = MODELS[spec.architecture], _shortened(spec, context)
    verify(checkpoint.shapes, kind.tensors(spec))
    threads = threads or min(THREADS, cores())
    if layers is not None:
        first = {"attention": spec.attention[:layers], "rope": spec.rope[:layers]}
        spec = replace(spec, layers=layers, **first)
    kept = layer_store(spec.layers) if layer_store is not None else None
    made = dtype or torch.bfloat16
    with Weights(checkpoint, made, device, threads, quantization, kept) as weights:
        return kind(spec, weights)


def opened(path: Path) -> tuple[Spec, Checkpoint]:
    """The model's shape, and its tensors, none of them read yet. Raises ConfigError."""
    if path.suffix == ".gguf":
        gguf = GGUF.open(path)
        spec = from_gguf(gguf)
        return spec, GGUFCheckpoint(gguf, spec)
    spec, scheme = read_spec(path), scheme_of(path)
    return spec, Packed(path, spec, scheme) if scheme else Safetensors(path, spec)


def _check(quantization: str, device: torch.device, dtype: torch.dtype | None) -> None:
    """Raise ConfigError unless this device can multiply weights quantised so."""
    if quantization not in QUANTIZATIONS:
        raise ConfigError(
            f"quantization {quantization!r} is unknown; use one of {', '.join(QUANTIZATIONS)}"
        )
    if quantization == "fp8" and not takes_fp8(device):
        found = "a CPU"
        if device.type == "cuda":
            major, minor = torch.cuda.get_device_capability(device)
            found = f"one of {major}.{minor}"
        raise ConfigError(
            "fp8 weights need a GPU of compute capability 8.9 or later (Ada, Hopper), and this is "
            f"{found}: use --quantization int4 or none"
        )
    if quantization == "fp8" and dtype not in (None, torch.bfloat16):
        raise ConfigError("fp8 weights are multiplied in bfloat16: leave --dtype at auto")
    if quantization == "int4" and not takes_codes(device, 4, GROUP):
        raise ConfigError(
            "int4 weights need Triton on a GPU, and on a CPU a C++ compiler and AVX2: "
            "use --quantization none"
        )


def _shortened(spec: Spec, context: int | None) -> Spec:
    if context is None:
        return spec
    if not 0 < context <= spec.context:
        raise ConfigError(
            f"--max-model-len must be from 1 to the model's {spec.context}, not {context}"
        )
    return replace(spec, context=context)
