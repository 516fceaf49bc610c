"""Compiling, caching, falling back, and the other instruction sets the one source serves."""

import ctypes
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from weir.ops import native

needs_kernels = pytest.mark.skipif(native.library() is None, reason=native.status())

COMPUTE = """
import torch
from weir.spec import AttentionSpec
from weir.ops import attention, linear, mlp, native, norm
from weir.ops.batch import Batch
print(native.status())
torch.manual_seed(0)
x, w = torch.randn(40, 96), torch.randn(70, 96).bfloat16()
y = norm.rms_norm(linear.linear(x, linear.pack(w)), torch.ones(70), 1e-5)
assert torch.allclose(y, norm.reference_rms_norm(x @ w.float().T, torch.ones(70), 1e-5), atol=3e-2)
q, kv = torch.randn(3, 4, 24), torch.randn(5, 2, 2, 16, 24)
batch = Batch(
    torch.tensor([0, 1, 3]).int(), torch.tensor([40, 2]).int(),
    torch.tensor([[3, 1, 4], [0, 0, 0]]).int(), torch.tensor([0, 1, 2]),
)
got = attention.attend(q, kv, batch, AttentionSpec(4, 2, 24, 0.2, 9, 3.0))
want = attention.reference_attend(q, kv, batch, AttentionSpec(4, 2, 24, 0.2, 9, 3.0))
assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(got, want))
assert torch.allclose(mlp.gated(y, "silu"), mlp.reference_gated(y, "silu"), atol=1e-5)
"""


def compute(cache: Path, **env: str) -> str:
    """What a fresh process says of its kernels once its results were right."""
    run = subprocess.run(
        [sys.executable, "-c", COMPUTE],
        env={**os.environ, "OMP_NUM_THREADS": "1", "WEIR_CACHE": str(cache), **env},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout.splitlines()[0]


def test_without_a_compiler_pytorch_computes_and_the_status_says_so(tmp_path: Path) -> None:
    said = compute(tmp_path, PATH="", CXX="")
    assert said.startswith("PyTorch path: no C++ compiler found") and "g++" in said
    assert not list(tmp_path.iterdir())


@needs_kernels
def test_what_was_compiled_before_needs_no_compiler(tmp_path: Path) -> None:
    """As in an image that is made where there is a compiler and runs where there is none."""
    (tmp_path / "native").mkdir()
    shutil.copy(native.library().path, tmp_path / "native")
    assert compute(tmp_path, PATH="", CXX="").startswith("native kernels")


def test_a_compiler_that_fails_is_reported(tmp_path: Path) -> None:
    fake = tmp_path / "c++"
    fake.write_text("#!/bin/sh\necho error: no room >&2\nexit 1\n")
    fake.chmod(0o755)
    said = compute(tmp_path, CXX=str(fake))
    assert said == f"PyTorch path: {fake} failed: error: no room"


def test_it_can_be_turned_off(tmp_path: Path) -> None:
    assert "WEIR_NATIVE=0" in compute(tmp_path, WEIR_NATIVE="0")


@needs_kernels
def test_a_damaged_library_is_compiled_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "one.cpp").write_text('extern "C" int one() { return 1; }')
    monkeypatch.setattr(native, "SOURCES", tmp_path)
    monkeypatch.setenv("WEIR_CACHE", str(tmp_path))
    compiler = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    with native.compiled(compiler, ("-O0",)) as path:
        path.write_bytes(b"half a library")
    with native.compiled(compiler, ("-O0",)) as again:
        assert again == path
    assert ctypes.CDLL(str(path)).one() == 1
    made = path.stat().st_mtime_ns
    with native.compiled(compiler, ("-O0",)) as again:
        assert again.stat().st_mtime_ns == made
    assert [p.name for p in (tmp_path / "native").iterdir()] == [path.name]
    monkeypatch.setenv("WEIR_CACHE", str(tmp_path / "one.cpp"))  # no folder can be made there
    with native.compiled(compiler, ("-O0",)) as elsewhere:
        assert ctypes.CDLL(str(elsewhere)).one() == 1
    assert not elsewhere.exists()


@needs_kernels
@pytest.mark.timeout(600)
@pytest.mark.parametrize("target", native._targets()[1:], ids=" ".join)
def test_narrower_instruction_sets_pass_the_same_tests(
    target: tuple[str, ...], tmp_path: Path
) -> None:
    """The tests of this folder once more, on the library that a lesser CPU would get, but for how
    long the compiler thinks about it."""
    folder = Path(__file__).parent
    code = (
        "import sys, pytest; from weir.ops import native;"
        f"native._targets = lambda: [{target!r}];"
        "native.FLAGS = tuple(f.replace('-O3', '-O1') for f in native.FLAGS);"
        f"sys.exit(pytest.main(['-q', '-x', '-p', 'no:cacheprovider', *{NARROW!r}]))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder.parents[1],
        env={**os.environ, "OMP_NUM_THREADS": "1", "WEIR_CACHE": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
    assert "skipped" not in run.stdout


NARROW = ["tests/ops/test_linear.py", "tests/ops/test_rows.py", "tests/ops/test_attention.py"]
NARROW += ["tests/models/test_codes.py"]
NARROW += ["-k", "not transformers"]  # whose import takes seconds, and no kernel


@needs_kernels
def test_bandwidth_is_that_of_a_memory() -> None:
    assert 1e6 < native.read_bandwidth(megabytes=32, repeats=2) < 1e13


@needs_kernels
def test_a_forked_process_computes_alone(tmp_path: Path) -> None:
    code = """
import os, torch
from weir.ops.linear import linear, pack
from weir.ops import native
native.set_threads(3)
x, w = torch.randn(64, 512), pack(torch.randn(512, 512))
want = linear(x, w)
child = os.fork()
if child == 0:
    os._exit(0 if torch.equal(linear(x, w), want) else 3)
assert os.waitpid(child, 0)[1] == 0 and torch.equal(linear(x, w), want)
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
