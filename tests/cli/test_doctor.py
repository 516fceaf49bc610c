"""The doctor sees a machine as it is, and works where things are missing."""

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from weir import doctor, linux
from weir.cli import main

ROOT = Path(doctor.__file__).parent.parent


def test_json_has_every_section(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json", "--quick"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert list(report) == ["machine", "gpu", "libraries", "kernels", "use", "features", "cache"]
    machine = {line["name"]: line["value"] for line in report["machine"]}
    assert machine["cores"].startswith(str(linux.cores()))
    assert "GiB" in machine["memory"]
    versions = {line["name"]: line["value"] for line in report["libraries"]}
    assert versions["msgspec"][0].isdigit()
    features = {line["name"]: line["value"] for line in report["features"]}
    assert features["grammars"].startswith("automaton, guidance (llguidance ")
    assert features["predicted lengths"] == "by the light ranker that comes with Weir"
    assert not any("could not be examined" in value for value in features.values())
    assert features["weights elsewhere, --offload"].endswith("on disk")
    shown = " ".join(features)
    assert all(word in shown for word in ("quantised", "--offload", "--cpu-attention", "disk"))


def test_every_library_of_the_package_is_looked_for() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

    def names(listed: list[str]) -> set[str]:
        return {re.split(r"[^a-z0-9-]", line.replace("_", "-"))[0] for line in listed}

    extras = project["optional-dependencies"]
    assert set(doctor.REQUIRED) == names(project["dependencies"])
    users = set().union(*(names(extras[extra]) for extra in extras if extra != "dev"))
    assert users == doctor.OPTIONAL.keys() - {"transformers"}


def test_what_is_missing_is_named_with_the_way_to_get_it() -> None:
    assert doctor.library("no-such-thing", "").advice == "pip install no-such-thing"
    assert "(optional)" in doctor.library("no-such-thing", "music").value


def test_a_probe_that_fails_is_one_line_of_the_report() -> None:
    def broken() -> list[doctor.Finding]:
        raise OSError("no such file")

    assert "no such file" in doctor.attempt(broken)[0].value


def test_rates_are_plausible(monkeypatch: pytest.MonkeyPatch) -> None:
    assert 1e6 < doctor.copy_rate(2**22) < 1e13
    assert doctor.best(lambda: None) < 10


def test_without_pytorch_and_without_a_compiler(tmp_path: Path) -> None:
    """It still reports, and says what to install."""
    (tmp_path / "torch.py").write_text("raise ImportError('this PyTorch is broken')")
    environ = {**os.environ, "PATH": str(tmp_path), "PYTHONPATH": f"{tmp_path}:{os.getcwd()}"}
    environ |= {"WEIR_CACHE": str(tmp_path / "cache")}
    environ.pop("CXX", None)
    command = [sys.executable, "-m", "weir.cli", "doctor", "--json", "--quick"]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60)
    report = json.loads(done.stdout)
    advice = [line["advice"] for section in report.values() for line in section]
    assert any("this PyTorch is broken" in text for text in advice)
    assert any("install a C++ compiler" in text for text in advice)
