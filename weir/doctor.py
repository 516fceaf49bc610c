"""What this machine offers, what Weir will use of it, what is missing and how to get it.

Must work where nothing else does: a probe that fails does not affect the others, and PyTorch, which
may be absent or broken, is imported once and handed to the probes that need it, or None.
"""

import ctypes
import os
import platform
import shutil
import sys
import timeit
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from msgspec import Struct

from weir import linux
from weir.folders import cache_folder
from weir.ops import native

GIB = 2**30
OLDEST_TORCH = (2, 11)
REQUIRED = (
    "torch numpy msgspec pyzmq safetensors tokenizers gguf jinja2 llguidance starlette uvicorn"
    " uvloop httptools httpx prometheus-client pyyaml rich greenlet"
).split()
"""Distributions that Weir does not run without."""

OPTIONAL = {
    "huggingface-hub": "models by hub id",
    "highspy": "weir plan and --offload auto",
    "opentelemetry-sdk": "request traces",
    "opentelemetry-exporter-otlp-proto-http": "sending them",
    "matplotlib": "the figures of simulations",
    "transformers": "tokenizers that nothing lighter can read",
}
"""Distribution → what it is good for."""

EXTENSIONS = {
    "x86_64": "avx2 fma f16c avx512f avx512_vnni avx512_bf16 amx_bf16 amx_int8".split(),
    "aarch64": "asimd asimdhp asimddp bf16 i8mm sve sve2".split(),
}
"""The vector instructions that matter, by machine, as the kernel names them."""


class Finding(Struct):
    """One line of the report; `advice` says what to do where something is missing."""

    name: str
    value: str
    advice: str = ""


Report = dict[str, list[Finding]]


def examine(measure: bool = True) -> Report:
    """Every section. A probe that fails becomes a finding; none is fatal."""
    torch, broken = import_torch()
    sections = {"machine": attempt(machine), "gpu": attempt(gpus, torch)}
    sections["libraries"] = attempt(libraries, torch, broken)
    sections["kernels"] = attempt(kernels)
    sections["use"] = attempt(use, torch)
    sections["features"] = attempt(features, torch)
    sections["cache"] = attempt(cache)
    if measure:
        sections["measured"] = attempt(measured, torch)
    return sections


def attempt(probe: Callable[..., list[Finding]], *known: Any) -> list[Finding]:
    """What `probe(*known)` finds or, if it raises, a finding that says so."""
    try:
        return probe(*known)
    except Exception as error:  # a report with a hole is better than none
        return [Finding(probe.__name__, f"could not be examined: {error}", "please report this")]


def machine() -> list[Finding]:
    info, flags = next(iter(linux.cpu_info()), {}), linux.instructions()
    known = EXTENSIONS.get(platform.machine(), [])
    total, free = linux.memory()
    old = "" if sys.version_info >= (3, 11) else "Weir needs Python 3.11 or later"
    return [
        Finding("processor", info.get("model name", platform.processor() or platform.machine())),
        Finding("vector instructions", " ".join(f for f in known if f in flags) or "none known"),
        Finding("cores", f"{linux.cores()} of {os.cpu_count()}"),
        Finding("memory", f"{total / GIB:.1f} GiB, {free / GIB:.1f} GiB free"),
        Finding("system", f"{platform.system()} {platform.release()} {platform.machine()}"),
        Finding("python", platform.python_version(), old),
    ]


def gpus(torch: Any) -> list[Finding]:
    driver = Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi") is not None
    if torch is None or not torch.cuda.is_available():
        if driver and torch is not None:
            advice = f"PyTorch {torch.__version__} cannot use it: install a CUDA build of PyTorch"
            return [Finding("GPU", "an NVIDIA driver, but no GPU that PyTorch can use", advice)]
        return [Finding("GPU", "none; the CPU will be used")]
    found = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        free, total = torch.cuda.mem_get_info(index)
        size = f"{total / GIB:.0f} GiB, {free / GIB:.0f} GiB free"
        kind = f"sm_{properties.major}{properties.minor}"
        found.append(Finding(f"GPU {index}", f"{properties.name}, {kind}, {size}"))
    return [*found, library("triton", "kernels")]


def libraries(torch: Any, broken: str) -> list[Finding]:
    found = [library(name, "") for name in REQUIRED]
    found += [library(name, purpose) for name, purpose in OPTIONAL.items()]
    if torch is None:
        found[0].advice = f"PyTorch cannot be imported: {broken}"
    elif tuple(int(part) for part in torch.__version__.split(".")[:2]) < OLDEST_TORCH:
        found[0].advice = f"Weir needs PyTorch {'.'.join(map(str, OLDEST_TORCH))} or later"
    return found


def library(name: str, purpose: str) -> Finding:
    try:
        return Finding(name, version(name))
    except PackageNotFoundError:
        advice = f"pip install {name}" + (f"   # for {purpose}" if purpose else "")
        return Finding(name, "not installed" + (" (optional)" if purpose else ""), advice)


def kernels() -> list[Finding]:
    compiler = next((path for name in native.COMPILERS if (path := shutil.which(name))), None)
    loaded = native.library() is not None
    advice = "" if loaded or compiler else "install a C++ compiler, such as apt install g++"
    status = Finding("CPU kernels", native.status())
    return [Finding("C++ compiler", compiler or "none", advice), status]


def use(torch: Any) -> list[Finding]:
    """What `--device auto` and `--dtype auto` choose here."""
    if torch is None:
        return [Finding("device", "none", "Weir cannot compute without PyTorch")]
    if torch.cuda.is_available():
        name = torch.cuda.get_device_name(0)
        return [Finding("device", f"cuda ({name})"), Finding("weights", "bfloat16")]
    compiled = native.library() is not None
    return [
        Finding("device", "cpu"),
        Finding("weights", "as in the file, else bfloat16" if compiled else "float32"),
        Finding("attention and linears", "C++ kernels" if compiled else "PyTorch"),
    ]


def features(torch: Any) -> list[Finding]:
    """The features that depend on the machine, decided by the code that implements them."""
    if torch is None:
        return [Finding("all", "none without PyTorch")]
    linear: Any = import_module("weir.ops.linear")
    gpu = torch.cuda.is_available()
    device = torch.device("cuda" if gpu else "cpu")
    codes = [f"{bits} bits" for bits in (4, 5, 6, 8) if linear.takes_codes(device, bits, 4096)]
    stored = [*codes, *(["fp8"] if linear.takes_fp8(device) else [])]
    relayed = gpu and native.library() is not None
    elsewhere = "no: it is for a GPU" if not gpu else "no: it needs the CPU kernels"
    return [
        Finding(
            "quantised weights",
            f"{', '.join(stored)}, multiplied as they are" if stored else "unpacked at load",
            "" if stored or gpu else "4 to 8 bits need the CPU kernels, and AVX2 in the processor",
        ),
        Finding("weights elsewhere, --offload", f"{'in main memory and ' * gpu}on disk"),
        Finding("KV in main memory, --cpu-cache", "yes" if gpu else "no: it is for a GPU"),
        Finding("attention there, --cpu-attention", "yes" if relayed else elsewhere),
        Finding("KV on disk, --disk-cache", "yes"),
        *(attempt(probe)[0] for probe in (grammars, ranker)),
    ]


def grammars() -> list[Finding]:
    import_module("weir.grammar.compile")
    return [Finding("grammars", f"automaton, guidance (llguidance {version('llguidance')})")]


def ranker() -> list[Finding]:
    files: Any = import_module("weir.ranker.files")
    kind = type(files.shipped()).__name__.lower()
    return [Finding("predicted lengths", f"by the {kind} ranker that comes with Weir")]


def cache() -> list[Finding]:
    root = cache_folder("")
    if not root.is_dir():
        return [Finding("folder", f"{root} (not made yet)")]
    parts = sorted(path for path in root.iterdir() if path.is_dir())
    sizes = [Finding(path.name, f"{folder_size(path) / 2**20:,.1f} MiB") for path in parts]
    return [Finding("folder", str(root)), *sizes]


def measured(torch: Any) -> list[Finding]:
    """Rates measured now, which other busy processes lower."""
    found = []
    if (rate := native.read_bandwidth()) is not None:
        found.append(Finding("memory read", f"{rate / 1e9:.1f} GB/s"))
    found.append(Finding("memory copy, one core", f"{copy_rate() / 1e9:.1f} GB/s read and written"))
    if torch is None:
        return found
    devices = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    for device in devices:
        for dtype in (torch.float32, torch.bfloat16):
            rate = multiply_rate(torch, device, dtype)
            name = f"matrix product, {device}, {str(dtype).removeprefix('torch.')}"
            found.append(Finding(name, f"{rate / 1e9:,.0f} GFLOP/s"))
    return found


def copy_rate(size: int = 2**27) -> float:
    """Bytes/s of a plain copy by one core, each byte counted once read and once written."""
    source, target = ctypes.create_string_buffer(size), ctypes.create_string_buffer(size)
    ctypes.memset(source, 1, size)
    return 2 * size / best(lambda: ctypes.memmove(target, source, size))


def multiply_rate(torch: Any, device: str, dtype: Any) -> float:
    """FLOP/s of one large matrix product, the best of a few."""
    size = 1024 if device == "cpu" else 8192
    a = torch.ones(size, size, dtype=dtype, device=device)

    def multiply() -> None:
        (a @ a)[0, 0].item()  # waits for the device

    return 2 * size**3 / best(multiply)


def best(work: Callable[[], object]) -> float:
    """Seconds of the fastest of four runs; the first one warms up."""
    return min(timeit.repeat(work, number=1, repeat=4))


def import_torch() -> tuple[Any, str]:
    """PyTorch; or None and why it cannot be imported."""
    try:
        return import_module("torch"), ""
    except Exception as error:  # a broken build fails in many ways
        return None, str(error).splitlines()[0] if str(error) else repr(error)


def folder_size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
