"""Set up a virtual environment: `install.py FOLDER [EXTRA]`. Needs only the standard library.

Without an NVIDIA driver it asks for PyTorch's CPU build first, which is gigabytes smaller. Set
TORCH_INDEX_URL to an index that has it if the default one does not.
"""

import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

CPU_TORCH = "torch==2.13.0+cpu"
ROOT = Path(__file__).resolve().parent.parent


def say(text: str) -> None:
    print(f"[install] {text}", flush=True)


def pip(python: Path, *arguments: str, quiet: bool = False) -> bool:
    command = [python, "-m", "pip", "install", "-q", "--no-compile", *arguments]
    output = subprocess.DEVNULL if quiet else None
    return subprocess.run(command, stderr=output, cwd=ROOT).returncode == 0


def has_nvidia_driver() -> bool:
    return shutil.which("nvidia-smi") is not None or Path("/proc/driver/nvidia/version").exists()


def install_torch(python: Path) -> None:
    if subprocess.run([python, "-c", "import torch"], stderr=subprocess.DEVNULL).returncode == 0:
        return
    index = os.environ.get("TORCH_INDEX_URL")
    where = ["--index-url", index] if index else []
    if has_nvidia_driver():
        say("PyTorch for NVIDIA GPUs")
    else:
        say("PyTorch, CPU build")
        if pip(python, CPU_TORCH, "numpy", *where, quiet=True):
            return
        say("the CPU build was not found (TORCH_INDEX_URL can name an index that has it);")
        say("taking the default build, which is larger")
    if not pip(python, "torch>=2.11", "numpy", *where):
        raise SystemExit("[install] PyTorch could not be installed: see pip's message above")


def main() -> None:
    if sys.version_info < (3, 11):  # noqa: UP036  # this file runs before anything is checked
        raise SystemExit("[install] Weir needs Python 3.11 or later: make PYTHON=python3.12 ...")
    folder, extra = Path(sys.argv[1]), sys.argv[2:3]
    python = folder / "bin" / "python"
    if not python.exists():
        say(f"a virtual environment in {folder}")
        venv.create(folder, with_pip=True)
    install_torch(python)
    say("Weir" + (f" with what its {extra[0]}elopers need" if extra == ["dev"] else ""))
    target = f".[{extra[0]}]" if extra else "."
    if not pip(python, "-e", target):
        raise SystemExit("[install] Weir could not be installed: see pip's message above")


if __name__ == "__main__":
    main()
