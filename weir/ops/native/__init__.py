"""The C++ kernels beside this file: compiled on the machine that runs them, called with ctypes.

Nothing here knows tensors; the ops pass pointers and sizes. Where there is neither a compiler nor a
library in the cache, `library()` is None, `status()` says so, and every op takes its PyTorch path.
"""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
import threading
import timeit
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from ctypes import c_double, c_float, c_int32, c_int64, c_uint32, c_void_p
from functools import partial
from pathlib import Path

from weir.folders import cache_folder
from weir.linux import cores, instructions

SOURCES = Path(__file__).parent
FLAGS = ("-std=c++17", "-O3", "-fPIC", "-pthread", "-fno-math-errno")
COMPILERS = ("c++", "g++", "clang++")

log = logging.getLogger(__name__)


class Linear(ctypes.Structure):
    """`Linear` of linear_kinds.h."""

    _fields_ = (
        ("weight", c_void_p),
        ("bias", c_void_p),
        ("n", c_int64),
        ("k", c_int64),
        ("kind", c_int32),
    )


class Attend(ctypes.Structure):
    """`Call` of attention.cpp."""

    _fields_ = (
        *((name, c_void_p) for name in ("q", "kv", "q_start", "kv_len", "first", "table")),
        *((name, c_void_p) for name in ("o", "lse")),
        *((name, c_int64) for name in ("q_stride", "sequences", "table_width", "heads")),
        *((name, c_int64) for name in ("kv_heads", "dim", "page", "window")),
        ("scale", c_float),
        ("softcap", c_float),
        ("type", c_int32),
        ("q_type", c_int32),
    )


class Job(ctypes.Structure):
    """`Job` of relay.cpp."""

    _fields_ = (("call", Attend), ("ready", c_void_p), ("done", c_void_p), ("ticket", c_uint32))


class Walk(ctypes.Structure):
    """`Walk` of trie.cpp."""

    _fields_ = (
        *((name, c_void_p) for name in ("skip", "token", "depth", "letter", "classes", "table")),
        *((name, c_int64) for name in ("nodes", "deepest", "none", "width")),
    )


POINTER, LONG, INT, FLOAT, DOUBLE = c_void_p, c_int64, c_int32, c_float, c_double
SIGNATURES = {
    "set_threads": (None, (INT,)),
    "set_patience": (None, (LONG,)),
    "read": (FLOAT, (POINTER, LONG)),
    "packed_bytes": (LONG, (LONG, LONG, INT)),
    "pack": (None, (POINTER, LONG, LONG, INT, POINTER)),
    "pack_codes": (None, (POINTER, POINTER, LONG, LONG, INT, POINTER)),
    "rows": (None, (POINTER, POINTER, LONG, POINTER)),
    "has_byte_products": (INT, ()),
    "linear": (None, (POINTER, POINTER, LONG, POINTER, FLOAT, INT, POINTER, POINTER, LONG)),
    "attend": (None, (POINTER,)),
    "use_tiles": (None, (INT,)),
    "relay_open": (POINTER, ()),
    "relay_add": (None, (POINTER, POINTER)),
    "relay_spent": (DOUBLE, (POINTER,)),
    "relay_close": (None, (POINTER,)),
    "write": (None, (POINTER, INT, POINTER, LONG, POINTER, LONG, POINTER, LONG, LONG, LONG, LONG)),
    "rms_norm": (None, (POINTER, POINTER, LONG, LONG, FLOAT, POINTER)),
    "layer_norm": (None, (POINTER, POINTER, POINTER, LONG, LONG, FLOAT, POINTER)),
    "rope": (None, (POINTER, LONG, LONG, LONG, LONG, POINTER, POINTER, LONG, POINTER, FLOAT)),
    "gated": (None, (POINTER, LONG, LONG, INT, POINTER)),
    "activate": (None, (POINTER, LONG, INT)),
    "tape_begin": (POINTER, ()),
    "tape_end": (None, ()),
    "tape_play": (None, (POINTER,)),
    "tape_free": (None, (POINTER,)),
    "walk": (INT, (POINTER, INT, INT, POINTER)),
}


class Library:
    """The functions of `SIGNATURES`; calls release the GIL and may come from any thread."""

    def __init__(self, path: Path) -> None:
        self.path = path
        shared = ctypes.CDLL(str(path))
        for name, (result, arguments) in SIGNATURES.items():
            function = getattr(shared, f"weir_{name}")
            function.restype, function.argtypes = result, arguments
            setattr(self, name, function)

    def __getattr__(self, name: str) -> ctypes._NamedFuncPointer:
        raise AttributeError(name)  # for the type checker: the functions are set above


class _State:
    """The state of this process."""

    library: Library | None = None
    status: str = ""
    threads: int = 0  # 0: every core this process may use
    lock = threading.Lock()


def library() -> Library | None:
    """The kernels for this machine, compiled at the first call of the first process that asks."""
    if not _State.status:
        with _State.lock:
            if not _State.status:
                _State.library, _State.status = _load()
                _apply_threads()
    return _State.library


def loaded() -> Library | None:
    """The kernels if they are there already; never waits for a compiler."""
    return _State.library


def status() -> str:
    """Whether the CPU ops use native kernels, and why not, in a sentence."""
    library()
    return _State.status


def set_threads(threads: int) -> None:
    """Compute with `threads` threads, including the caller's; 0: all cores of this process."""
    _State.threads = threads
    if _State.library is not None:
        _apply_threads()


def read_bandwidth(threads: int = 0, megabytes: int = 256, repeats: int = 5) -> float | None:
    """Bytes per second that `threads` threads read from memory, the best of `repeats` passes.

    None where there is no native library.
    """
    lib = library()
    if lib is None:
        return None
    size = megabytes << 20
    data = ctypes.create_string_buffer(size)
    ctypes.memset(data, 1, size)  # pages never written are all the same page of zeros
    before = _State.threads
    set_threads(threads)
    try:
        read = partial(lib.read, ctypes.addressof(data), size // 4)
        return size / min(timeit.repeat(read, number=1, repeat=repeats))
    finally:
        set_threads(before)


def _apply_threads() -> None:
    if _State.library is not None:
        _State.library.set_threads(_State.threads or cores())


def _load() -> tuple[Library | None, str]:
    if os.environ.get("WEIR_NATIVE", "1") == "0":
        return None, "PyTorch path: native kernels are turned off by WEIR_NATIVE=0"
    compiler = next(filter(None, map(shutil.which, (os.environ.get("CXX", ""), *COMPILERS))), None)
    reason = ""
    for target in _targets():
        try:
            with compiled(compiler, target) as path:
                lib = Library(path)
            return lib, f"native kernels ({' '.join(target) or 'portable'})"
        except (OSError, subprocess.SubprocessError, AttributeError) as error:
            said = _first_line(error)
            reason = reason or (f"{compiler} failed: {said}" if compiler else said)
    log.warning("CPU kernels are slow: %s", reason)
    return None, f"PyTorch path: {reason}"


@contextmanager
def compiled(compiler: str | None, target: tuple[str, ...]) -> Iterator[Path]:
    """The library with `target` flags, to be loaded within the context: taken from the user's cache
    if these sources were compiled for such a CPU before, by any compiler; else compiled, and kept
    there where that can be written.

    Raises OSError or subprocess.SubprocessError where there is none and it cannot be compiled.
    """
    sources = sorted(SOURCES.glob("*.cpp"))
    key = hashlib.sha256()
    for part in (*FLAGS, *target, platform.machine(), *instructions()):
        key.update(part.encode() + b"\0")
    for source in (*sources, *sorted(SOURCES.glob("*.h"))):
        key.update(source.read_bytes())
    path = cache_folder("native") / f"ops-{key.hexdigest()[:16]}.so"
    if _loads(path):
        yield path
        return
    if compiler is None:
        raise FileNotFoundError(
            f"no C++ compiler found (install g++ or clang++, or set CXX), and {path.parent} has no "
            "library of this version for this CPU"
        )
    with _alone(path.parent), tempfile.TemporaryDirectory() as work:
        if _loads(path):  # others have made it meanwhile
            yield path
            return
        out = Path(work) / path.name
        log.info("compiling the CPU kernels with %s", compiler)
        objects = [Path(work) / f"{source.stem}.o" for source in sources]

        def make(*arguments: object) -> None:
            command = [compiler, *FLAGS, *target, *map(str, arguments)]
            subprocess.run(command, capture_output=True, check=True, timeout=300)

        with ThreadPoolExecutor(cores()) as pool:
            list(pool.map(partial(make, "-c", "-o"), objects, sources))
        make("-shared", "-o", out, *objects)
        yield path if _kept(out, path) else out


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Lock `folder`, so that of many processes that start together only one compiles. No lock where
    the folder cannot be made."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(folder, os.O_RDONLY)
    except OSError:
        yield
        return
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)  # released when this process ends, however it does
        yield
    finally:
        os.close(lock)


def _kept(made: Path, path: Path) -> bool:
    """Put a library into the cache, atomically; whether that succeeded. Others may do the same."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as work:
            os.replace(shutil.copy(made, work), path)
    except OSError as error:
        log.warning("CPU kernels will be compiled again at the next start: %s", error)
        return False
    return True


def _loads(path: Path) -> bool:
    """Whether the library exists and can be loaded on this machine."""
    try:
        ctypes.CDLL(str(path))
    except OSError:
        return False
    return True


def _targets() -> list[tuple[str, ...]]:
    targets: list[tuple[str, ...]] = [("-march=native",)]
    if platform.machine() in ("x86_64", "AMD64") and {"avx2", "fma"} <= set(instructions()):
        targets.append(("-mavx2", "-mfma"))
    return [*targets, ()]


def _first_line(error: Exception) -> str:
    stderr = getattr(error, "stderr", None)
    lines = stderr.decode(errors="replace").splitlines() if stderr else [str(error)]
    return next((line for line in lines if "error" in line), lines[0] if lines else str(error))
