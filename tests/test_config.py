"""Every setting from every place: who wins, what is refused, and in which words."""

import json
import math
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from weir.config import FIELDS, SECTIONS, Config, load
from weir.errors import ConfigError
from weir.fields import default, describe, parse_size, plain
from weir.peers import ALIASES, NEUTRAL, OPPOSITES


def test_nothing_given_is_the_default() -> None:
    assert load({}, {}) == Config()
    assert load({}, {"PATH": "/bin", "WEIR_CACHE": "x", "WEIR_NATIVE": "0"}) == Config()


def test_flag_beats_environment_beats_file_beats_default(tmp_path: Path) -> None:
    file = tmp_path / "weir.yaml"
    file.write_text("block-size: 1\nport: 1\nmax_num_seqs: 1\napi-key: [a, b]\n")
    environ = {"WEIR_BLOCK_SIZE": "2", "WEIR_PORT": "2"}
    config = load({"block_size": "3"}, environ, file)
    assert (config.block_size, config.port, config.max_num_seqs) == (3, 2, 1)
    assert config.api_key == ["a", "b"]
    assert load({}, {"WEIR_CONFIG": str(file)}).block_size == 1


def test_an_alias_is_the_same_setting_in_every_layer(tmp_path: Path) -> None:
    file = tmp_path / "weir.yaml"
    file.write_text("page-size: 8\ncontext-length: 99\ndisable-radix-cache: true\n")
    config = load({"max_running_requests": "4"}, {"WEIR_PAGE_SIZE": "16"}, file)
    assert (config.block_size, config.max_model_len, config.max_num_seqs) == (16, 99, 4)
    assert config.enable_prefix_caching is False


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("max_model_len", "auto", None),
        ("dtype", "half", "float16"),
        ("dtype", "Float", "float32"),
        ("dtype", "bfloat16", "bfloat16"),
        ("max_model_len", "-1", None),
        ("max_model_len", "128", 128),
        ("max_num_batched_tokens", "auto", 0),
        ("dtype", "auto", "auto"),
        ("kv_cache_memory", "1.5GiB", 3 * 2**29),
        ("max_body_bytes", 1024, 1024),
        ("overlap", "no", ConfigError),
        ("overlap", "0", False),
        ("overlap", True, True),
        ("api_key", "a, b", ["a", "b"]),
        ("gpu_memory_utilization", "0.5", 0.5),
        ("tokenizer", None, None),
        ("device", "tpu", ConfigError),
        ("port", "65536", ConfigError),
        ("port", "8e3", 8000),
        ("gpu_memory_utilization", "0", ConfigError),
        ("step_timeout", "nan", ConfigError),
        ("step_timeout", "inf", ConfigError),
        ("model", "", ConfigError),
        ("model", ["a"], ConfigError),
        ("kv_cache_memory", "-1", ConfigError),
        ("kv_cache_memory", "8 apples", ConfigError),
        ("max_num_queued_reqs", "0", ConfigError),
        ("api_key", {"a": 1}, ConfigError),
        ("api_key", "a,,b", ["a", "b"]),
        ("api_key", ["a", ""], ConfigError),
        ("root_path", "x", ConfigError),
    ],
)
def test_values(name: str, text: object, value: object) -> None:
    if value is ConfigError:
        with pytest.raises(ConfigError, match=f"--{name.replace('_', '-')}"):
            load({name: text}, {})
    else:
        assert getattr(load({name: text}, {}), name) == value


def test_a_message_says_where_and_what_is_allowed(tmp_path: Path) -> None:
    file = tmp_path / "weir.yaml"
    file.write_text("dtype: int3\n")
    with pytest.raises(ConfigError) as caught:
        load({}, {}, file)
    assert str(caught.value) == (
        f"{file}: dtype: expected one of auto, float32, bfloat16, float16, got 'int3'"
    )
    with pytest.raises(ConfigError, match=r"^WEIR_PORT: expected `int`.*enableServiceLinks"):
        load({}, {"WEIR_PORT": "tcp://10.0.0.1:8000"})
    with pytest.raises(ConfigError, match=r"^WEIR_BLOK_SIZE: .*did you mean WEIR_BLOCK_SIZE\?"):
        load({}, {"WEIR_BLOK_SIZE": "2"})
    links = ("SERVICE_HOST", "SERVICE_PORT", "SERVICE_PORT_HTTP", "PORT_80_TCP", "PORT_80_TCP_ADDR")
    assert load({}, {f"WEIR_{name}": "x" for name in links}) == Config()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("blok-size: 1", "blok-size: no such setting; did you mean block-size"),
        ("- a\n- b", "one setting a line"),
        ("a: [", "not a YAML file"),
        ("1: 2", "one setting a line"),
        ("block-size: {a: 1}", "expected `int`"),
    ],
)
def test_files_that_make_no_sense(content: str, said: str, tmp_path: Path) -> None:
    file = tmp_path / "weir.yaml"
    file.write_text(content)
    with pytest.raises(ConfigError, match=said):
        load({}, {}, file)


def test_files_that_are_empty_or_absent(tmp_path: Path) -> None:
    empty = tmp_path / "empty.yaml"
    empty.write_text("# nothing\n")
    assert load({}, {}, empty) == Config()
    with pytest.raises(ConfigError, match="cannot be read"):
        load({}, {}, tmp_path / "absent.yaml")


def test_what_weir_cannot_do_is_accepted_only_as_doing_nothing() -> None:
    assert load({"tensor_parallel_size": "1", "trust_remote_code": False}, {}) == Config()
    assert load({"quantization": None}, {}) == Config()
    assert load({"quantization": "AWQ_Marlin"}, {}) == Config(quantization="awq")
    assert load({"tool_call_parser": "hermes", "enable_auto_tool_choice": True}, {}) == Config()
    refused = {
        "tool_call_parser": "mistral",
        "tp_size": 2,
        "trust_remote_code": "true",
        "speculative_config": "{}",
    }
    for name, value in refused.items():
        with pytest.raises(ConfigError, match=r"only .* is possible"):
            load({name: value}, {})


def test_settings_that_contradict_each_other() -> None:
    with pytest.raises(ConfigError, match="--max-num-batched-tokens 8 is less"):
        load({"max_num_batched_tokens": 8, "max_num_seqs": 16}, {})
    with pytest.raises(ConfigError, match="--cold-kv-dtype is of KV on disk"):
        load({"cold_kv_dtype": "int8"}, {})


def test_other_engines_sizes_are_in_gib() -> None:
    assert load({"swap_space": "4"}, {}).cpu_cache == 4 * 2**30
    assert load({}, {"WEIR_KV_OFFLOADING_SIZE": "1.5"}).cpu_cache == 1.5 * 2**30
    assert load({"kv_offloading_size": "512MiB"}, {}).cpu_cache == 2**29
    with pytest.raises(ConfigError, match="--cpu-cache keeps prefixes"):
        load({"swap_space": 4, "enable_prefix_caching": "false"}, {})


def test_every_name_is_a_setting_and_every_setting_is_described() -> None:
    assert set(ALIASES.values()) | set(OPPOSITES.values()) | SECTIONS.keys() <= FIELDS.keys()
    assert not (ALIASES.keys() | OPPOSITES.keys() | NEUTRAL.keys()) & FIELDS.keys()
    for field in FIELDS.values():
        assert 3 < len(describe(field)) < 80, field.name
        assert plain(field.type) is not None


@given(st.data())
def test_what_a_config_holds_can_be_written_and_read_back(data) -> None:
    """Any subset of the defaults, written as a flag or a variable, gives the default."""
    names = data.draw(st.sets(st.sampled_from(sorted(FIELDS))))
    values = {name: default(FIELDS[name]) for name in names}
    written = {f"WEIR_{name.upper()}": spell(value) for name, value in values.items()}
    assert load(values, {}) == Config()
    assert load({}, {key: text for key, text in written.items() if text is not None}) == Config()


def spell(value: object) -> str | None:
    if value is None or value == "":
        return None
    return ",".join(value) if isinstance(value, list) else str(value)


@given(st.integers(0, 2**50), st.sampled_from(["", "B", " MiB", "gb", "TiB", "k"]))
def test_sizes(number: int, unit: str) -> None:
    units = {"": 1, "B": 1, " MiB": 2**20, "gb": 10**9, "TiB": 2**40, "k": 1000}
    assert math.isclose(parse_size(f"{number}{unit}"), number * units[unit], rel_tol=1e-12)


def test_a_config_crosses_a_wire() -> None:
    config = load({"api_key": ["secret"], "max_model_len": 5}, {})
    assert msgspec.convert(json.loads(msgspec.json.encode(config)), Config) == config
    assert "secret" not in json.dumps(config.public())
    assert config.names == ["smollm2-135m"]


def test_every_tenant_has_a_key_of_its_own() -> None:
    config = load({"tenant_keys": "a=1,b=x=y"}, {})
    assert config.tenants == {"a": "1", "b": "x=y"}
    assert config.public()["tenant_keys"] == ["a=***", "b=***"]
    for wrong in ("a", "=1", "a=", "a=1,a=2", "a=1,b=1"):
        with pytest.raises(ConfigError, match="--tenant-keys: ") as error:
            load({"tenant_keys": wrong}, {})
        assert "1" not in str(error.value)
    with pytest.raises(ConfigError, match="not to --api-key too"):
        load({"tenant_keys": "a=1", "api_key": "1"}, {})


def test_a_latency_target_is_a_duration() -> None:
    for text, seconds in (("50ms", 0.05), ("0.05", 0.05), ("1.5s", 1.5), ("120 ms", 0.12)):
        assert load({"target_tbt": text}, {}).target_tbt == pytest.approx(seconds)
    assert load({}, {"WEIR_TARGET_TBT": "20ms"}).target_tbt == pytest.approx(0.02)
    with pytest.raises(ConfigError, match="expected a duration such as 50ms"):
        load({"target_tbt": "soon"}, {})
    with pytest.raises(ConfigError, match="leave out --composer and"):
        load({"target_tbt": "50ms", "composer": "static"}, {})
