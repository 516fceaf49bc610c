"""ServeGen clients: rates, lengths and files that are no such thing."""

import json
import statistics
from pathlib import Path

import pytest

from weir.errors import ConfigError
from weir.sim.flags import Vocabulary
from weir.sim.servegen import servegen
from weir.sim.workload import Words

CLIENT = {
    "workload": "steady",
    "quantile_levels": [0, 50, 100],
    "input_tokens_quantiles": [10, 20, 40],
    "output_tokens_quantiles": [1, 5, 9],
}


def write(path: Path, *lines: object) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def words() -> Words:
    return Words(Vocabulary(100), 1)


def test_rates_and_lengths_are_the_clients_own(tmp_path: Path) -> None:
    gamma = [[0, 2.0, 1.0, "Gamma", 1.0, 0.5], [600, 8.0, 1.0, "Gamma", 4.0, 1 / 32]]
    weibull = [[0, 1.0, 1.0, "Weibull", 1.0, 1.0], [1200, 0, 0, "Gamma", 1, 1]]
    path = write(
        tmp_path / "clients.jsonl",
        CLIENT | {"windows": gamma},
        CLIENT | {"windows": weibull},
        CLIENT | {"workload": "other", "windows": gamma},
    )
    load = servegen(path, words(), 10**6)
    times = [item.arrival for item in load.items]
    assert times == sorted(times) and load.timed and load.name == "steady"
    early = [time for time in times if time < 600]
    assert len(early) == pytest.approx(600 * 3, rel=0.1)
    assert len(times) - len(early) == pytest.approx(600 * 8, rel=0.05)
    lengths = [len(item.prompt) for item in load.items]
    assert min(lengths) >= 10 and max(lengths) <= 40
    assert statistics.median(lengths) == pytest.approx(20, abs=1)
    assert statistics.median(item.output for item in load.items) == pytest.approx(5, abs=0.5)
    assert servegen(path, words(), 10**6) == load


def test_it_can_begin_later_and_end_sooner(tmp_path: Path) -> None:
    windows = [[0, 2.0, 1.0, "Gamma", 1.0, 0.5], [600, 8.0, 1.0, "Gamma", 1.0, 0.125]]
    path = write(tmp_path / "clients.jsonl", CLIENT | {"windows": windows})
    load = servegen(path, words(), 400, begin=600)
    assert len(load.items) == 400 and load.items[0].arrival == 0
    assert load.items[-1].arrival == pytest.approx(50, rel=0.2)


def test_what_is_no_such_file_is_said(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", {"workload": "x", "windows": []})
    with pytest.raises(ConfigError, match="each line needs workload, quantile_levels"):
        servegen(path, words(), 5)
    path = write(tmp_path / "b.jsonl", CLIENT | {"windows": [[0, 1, 1, "Gamma", 1, 1]]})
    with pytest.raises(ConfigError, match="has no workload 'mid'; there are steady"):
        servegen(path, words(), 5, "mid")
