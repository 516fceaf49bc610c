"""The kernels compile for a GPU, also where there is none to run them on."""

import os
import subprocess
import sys

import pytest

pytest.importorskip("triton", minversion="3.9")


@pytest.mark.timeout(300)
def test_every_kernel_compiles_for_hopper() -> None:
    """In a process of its own: here Triton may be interpreting."""
    settings = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, "-W", "ignore", "-m", "tests.ops.compiled"]
    done = subprocess.run(command, env=settings, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
