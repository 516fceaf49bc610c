"""How an engine and its server are set up: one frozen tree, with the names of `vllm serve`.

The fields below are the only schema: command-line flags, WEIR_* environment variables, the YAML
file and the reference documentation all come from them. A value is taken from the flag, else the
environment, else the file, else the default, and is checked here, once. Nothing below the command
line may read the environment or this module; `Config` stops at `weir.build`.
"""

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import msgspec
from msgspec import Struct, field
from msgspec.structs import FieldInfo, asdict, fields

from weir.errors import ConfigError
from weir.fields import (
    Answers,
    Bytes,
    Count,
    Duration,
    File,
    Folder,
    Port,
    Positive,
    Seconds,
    Share,
    Text,
    about,
    convert,
)
from weir.peers import ALIASES, GIBIBYTES, KERNELS, NEUTRAL, OPPOSITES, TYPES

MIB = 2**20

Device = Literal["auto", "cpu", "cuda"]
Weights = Literal["auto", "float32", "bfloat16", "float16"]
Format = Literal["auto", "safetensors", "gguf", "dummy"]
KV = Literal["auto", "float32", "bfloat16", "float16", "int8", "int4"]
ColdKV = Literal["auto", "int8", "int4"]
Quantization = Literal["auto", "none", "fp8", "int4", "awq", "gptq", "compressed-tensors", "gguf"]
Level = Literal["debug", "info", "warning", "error", "critical"]
Grammars = Literal["auto", "automaton", "guidance", "none"]
Where = Literal["off", "auto", "all"]
LogFormat = Literal["text", "json"]


class Config(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    model: Annotated[Text, about("folder, .gguf file, embedded name or hub id")] = "smollm2-135m"
    served_model_name: Annotated[
        list[str], about("names clients may use; default: the model as given")
    ] = []
    tokenizer: Annotated[Text | None, about("folder or file with another tokenizer")] = None
    revision: Annotated[Text | None, about("branch, tag or commit of a hub model")] = None
    download_dir: Annotated[Folder | None, about("where hub models are kept")] = None
    load_format: Annotated[Format, about("weight file; dummy: random from a config alone")] = "auto"
    dtype: Annotated[Weights, about("type of the weights; auto: best for the device")] = "auto"
    quantization: Annotated[
        Quantization,
        about("weights of 8 or 4 bits; auto: as the file has them, none: unpacked to --dtype"),
    ] = "auto"
    max_model_len: Annotated[
        Positive | None, about("tokens of prompt and answer together; auto or -1: the model's")
    ] = None
    generation_config: Annotated[
        Text, about("sampling of requests that do not say: auto: the model's, none, or its folder")
    ] = "auto"
    chat_template: Annotated[Text | None, about("Jinja chat template: a file or the text")] = None
    seed: Annotated[int, about("seed of everything random")] = 0

    device: Annotated[Device, about("what computes; auto: a GPU if there is one")] = "auto"
    threads: Annotated[Count, about("CPU compute threads; 0: every core allowed")] = 0
    block_size: Annotated[Count, about("tokens a KV page; 0: best for the device")] = 0
    kv_cache_dtype: Annotated[
        KV, about("type of the KV cache; int8 and int4 are for main memory and lose precision")
    ] = "auto"
    kv_cache_memory: Annotated[
        Bytes, about("size of the KV cache, such as 8GiB; 0: a share of the memory")
    ] = 0
    gpu_memory_utilization: Annotated[
        Share, about("part of a GPU's memory for weights, activations and KV cache")
    ] = 0.9
    gpu_memory: Annotated[
        Bytes, about("most that is used of a GPU's memory in any case, such as 16GiB; 0: no bound")
    ] = 0
    cpu_memory_fraction: Annotated[
        Share, about("part of the free main memory for the KV cache, on a CPU")
    ] = 0.25
    cpu_cache: Annotated[
        Bytes, about("main memory for prefixes that a GPU has no room for, such as 64GiB")
    ] = 0
    cpu_attention: Annotated[
        Where, about("attend to KV in --cpu-cache there: off, auto: where that pays, or all of it")
    ] = "off"
    disk_cache: Annotated[
        Folder | None, about("folder where cached prefixes go before they would be dropped")
    ] = None
    disk_cache_size: Annotated[
        Bytes, about("size of the cache on disk, taken at once, such as 100GiB")
    ] = 8 * 2**30
    offload: Annotated[
        Text, about("weights off the GPU: none, auto or a file that `weir plan --json` wrote")
    ] = "none"
    cpu_memory: Annotated[Bytes, about("main memory for what is offloaded; 0: what is free")] = 0
    offload_dir: Annotated[
        Folder | None, about("folder for weights that main memory has no room for, while it runs")
    ] = None
    cold_kv_dtype: Annotated[
        ColdKV, about("type of KV in the cache on disk; auto: as in memory; others lose precision")
    ] = "auto"
    enable_prefix_caching: Annotated[bool, about("reuse the KV cache of equal prefixes")] = True

    scheduling_policy: Annotated[
        Text, about("who goes first, such as lpm or aging(fair(fcfs)); see docs/scheduling.md")
    ] = "auto"
    ranker: Annotated[
        Text, about("what predicts lengths of answers: auto, none or a file of `weir rank train`")
    ] = "auto"
    ranker_memory: Annotated[
        Answers, about("answers that predicted lengths learn from, the latest; 0: none")
    ] = 1024
    length_log: Annotated[
        File | None, about("file that prompts and lengths of answers are added to, for a ranker")
    ] = None
    tenant_weights: Annotated[
        list[str], about("name=weight of tenants that fair() serves more or less than others")
    ] = []
    composer: Annotated[
        Text, about("how prompts join a step: chunked, whole, prefill-first or static")
    ] = "chunked"
    memory_policy: Annotated[
        Text, about("who is admitted to the KV cache: on-demand, estimate or reserve")
    ] = "on-demand"
    max_num_batched_tokens: Annotated[
        Count, about("tokens computed in one step; 0: best for the device")
    ] = 0
    max_lane_tokens: Annotated[
        Count, about("tokens that are computed at once, the rest of a step in turn; 0: all")
    ] = 0
    max_prefill_beside_decode: Annotated[
        Count, about("prompt tokens in a step that also decodes; 0: best for the device")
    ] = 0
    target_tbt: Annotated[
        Duration, about("longest time between two tokens, such as 50ms, that steps aim at; 0: none")
    ] = 0.0
    target_ttft: Annotated[
        Duration, about("time to the first token, such as 500ms, that steps aim at; 0: none")
    ] = 0.0
    max_num_seqs: Annotated[Count, about("requests in one step; 0: best for the device")] = 0
    overlap: Annotated[bool, about("plan the next step while the device works")] = True
    enforce_eager: Annotated[
        bool, about("launch every kernel by itself: no CUDA graphs, no tapes")
    ] = False
    cuda_graph_sizes: Annotated[
        list[Positive], about("numbers of decodes that are CUDA graphs; default: up to the most")
    ] = []
    max_num_queued_reqs: Annotated[Positive, about("requests that may wait; more get a 503")] = 2048
    max_num_queued_tokens: Annotated[Count, about("prompt tokens that may wait; 0: no bound")] = 0

    grammar_backend: Annotated[
        Grammars, about("what holds answers to a grammar; auto: the fastest that can")
    ] = "auto"
    grammar_timeout: Annotated[
        Seconds, about("seconds that compiling a grammar may take until it is refused")
    ] = 10.0

    host: Annotated[Text, about("address to listen on")] = "127.0.0.1"
    port: Annotated[Port, about("port to listen on; 0: any free one")] = 8000
    separate_reasoning: Annotated[
        bool, about("tell what a model thinks, between <think> tags, from what it answers")
    ] = True
    api_key: Annotated[list[str], about("keys; a client must present one of them")] = []
    tenant_keys: Annotated[
        list[str], about("name=key of tenants that fair() tells apart by key, not by `user`")
    ] = []
    allowed_origins: Annotated[list[str], about("origins that browsers may call from")] = field(
        default_factory=lambda: ["*"]
    )
    root_path: Annotated[str, about("path prefix that a proxy strips")] = ""
    max_body_bytes: Annotated[Bytes, about("largest request body, such as 32MiB")] = 32 * MIB
    shutdown_timeout: Annotated[
        Seconds, about("seconds that running requests get after SIGTERM")
    ] = 30.0
    step_timeout: Annotated[Seconds, about("seconds until a step counts as hung")] = 60.0
    heartbeat_timeout: Annotated[
        Seconds, about("seconds of silence until the engine is restarted")
    ] = 5.0

    log_level: Annotated[Level, about("least severity that is logged")] = "info"
    log_format: Annotated[LogFormat, about("form of the log lines")] = "text"
    enable_log_requests: Annotated[bool, about("log every request and its end")] = False
    otlp_traces_endpoint: Annotated[
        Text | None, about("OpenTelemetry collector for request traces")
    ] = None
    vllm_metric_names: Annotated[bool, about("publish metrics under vLLM's names too")] = False

    @property
    def names(self) -> list[str]:
        """The model names clients may use, the one shown first."""
        return self.served_model_name or [self.model]

    @property
    def tenants(self) -> dict[str, str]:
        """Tenant → API key."""
        return {name: key for name, _, key in (item.partition("=") for item in self.tenant_keys)}

    def public(self) -> dict[str, Any]:
        """Every setting but the secrets, for /server_info and logs."""
        masked = {"tenant_keys": [f"{name}=***" for name in self.tenants]}
        return asdict(self) | masked | {"api_key": ["***"] * len(self.api_key)}


FIELDS: dict[str, FieldInfo] = {info.name: info for info in fields(Config)}

SECTIONS = {
    "model": "model",
    "device": "device and memory",
    "scheduling_policy": "scheduling",
    "host": "server",
    "log_level": "observability",
}
"""The first field of each section of the reference, and the section's title."""

OTHERS = {f"WEIR_{name}" for name in ("CACHE", "CONFIG", "DATA", "MODELS", "NATIVE")}
"""Variables that are no settings."""


class Given(NamedTuple):
    """A value as somebody wrote it, and where, in the words of an error message."""

    value: object
    where: str


def load(
    flags: Mapping[str, object], environ: Mapping[str, str], file: str | Path | None = None
) -> Config:
    """The configuration that flags, environment (WEIR_<FLAG>) and a YAML file make together.

    `flags` holds only what was given, by field name or any alias with underscores. Raises
    `ConfigError` naming the place of the first unknown key, ill-typed or impossible value.
    """
    given: dict[str, Given] = {}
    if file := (file or environ.get("WEIR_CONFIG")):
        for key, value in _read(Path(file)).items():
            _add(given, key.replace("-", "_"), Given(value, f"{file}: {key}"))
    settings = (*FIELDS, *ALIASES, *OPPOSITES, *NEUTRAL)
    for name in settings:
        variable = "WEIR_" + name.upper()
        if variable in environ:
            _add(given, name, Given(environ[variable], variable))
    for variable in environ.keys() - {"WEIR_" + name.upper() for name in settings} - OTHERS:
        if variable.startswith("WEIR_"):
            close = difflib.get_close_matches(variable[5:].lower(), settings, 1, cutoff=0.8)
            if close:  # any other may be of whatever runs Weir
                meant = "WEIR_" + close[0].upper()
                raise ConfigError(f"{variable}: no such setting; did you mean {meant}?")
    for name, value in flags.items():
        _add(given, name, Given(value, "--" + name.replace("_", "-")))
    values: dict[str, Any] = {name: _convert(name, *pair) for name, pair in given.items()}
    config = Config(**values)
    _check(config)
    return config


def _read(path: Path) -> dict[str, Any]:
    try:
        content = msgspec.yaml.decode(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except msgspec.DecodeError as error:
        raise ConfigError(f"{path}: not a YAML file: {error}") from None
    if content is None:
        return {}
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise ConfigError(f"{path}: expected one setting a line, such as `block-size: 16`")
    return content


def _add(given: dict[str, Given], name: str, item: Given) -> None:
    """Put one setting under its own name; a later layer replaces an earlier one."""
    if name in GIBIBYTES and str(item.value).replace(".", "", 1).isdigit():
        item = Given(f"{item.value}GiB", item.where)
    if name in OPPOSITES:
        off = _convert(OPPOSITES[name], *item)
        given[OPPOSITES[name]] = Given(not off, item.where)
    elif name in NEUTRAL:
        values, why = NEUTRAL[name]
        text = "none" if item.value is None else str(item.value).lower()
        if text not in values:
            allowed = " or ".join(sorted(values))
            raise ConfigError(f"{item.where}: only {allowed} is possible, got {text}: {why}")
    elif (name := ALIASES.get(name, name)) in FIELDS:
        given[name] = item
    else:
        close = difflib.get_close_matches(name, [*FIELDS, *ALIASES, *OPPOSITES], 1)
        hint = f"; did you mean {close[0].replace('_', '-')}?" if close else ""
        raise ConfigError(f"{item.where}: no such setting{hint}")


def _convert(name: str, value: object, where: str) -> object:
    """A value from a flag, variable or file as the field's type."""
    text = value.strip().lower() if isinstance(value, str) else ""
    if name == "max_model_len" and value in (-1, "-1"):
        return None
    if name == "quantization":
        value = "auto" if value is None else KERNELS.get(text, text)
    if name == "dtype":
        value = TYPES.get(text, value)
    return convert(FIELDS[name], value, where)


def _check(config: Config) -> None:
    """What no single field can say."""
    tokens, seqs = config.max_num_batched_tokens, config.max_num_seqs
    if 0 < tokens < seqs:
        raise ConfigError(
            f"--max-num-batched-tokens {tokens} is less than --max-num-seqs {seqs}, but every "
            "running request needs a token a step: raise the first or lower the second"
        )
    if (config.target_tbt or config.target_ttft) and (
        not config.composer.startswith("chunked") or config.max_prefill_beside_decode
    ):
        raise ConfigError(
            "--target-tbt and --target-ttft set how much prompt goes beside decodes: leave out "
            "--composer and --max-prefill-beside-decode"
        )
    for name in ("cpu_cache", "disk_cache"):
        if getattr(config, name) and not config.enable_prefix_caching:
            flag = name.replace("_", "-")
            raise ConfigError(f"--{flag} keeps prefixes: leave out --no-enable-prefix-caching")
    if config.cold_kv_dtype != "auto" and not config.disk_cache:
        raise ConfigError("--cold-kv-dtype is of KV on disk: add --disk-cache FOLDER")
    if config.cpu_attention != "off" and not config.cpu_cache:
        raise ConfigError("--cpu-attention needs room for KV in main memory: add --cpu-cache 64GiB")
    if config.cpu_attention != "off" and not config.memory_policy.startswith("on-demand"):
        raise ConfigError("--cpu-attention needs --memory-policy on-demand")
    if not all(config.served_model_name) or not all(config.api_key):
        raise ConfigError("--served-model-name and --api-key must not hold an empty string")
    if not all(map(all, config.tenants.items())) or len(config.tenants) < len(config.tenant_keys):
        raise ConfigError("--tenant-keys: expected name=key for each tenant, and each name once")
    keys = set(config.tenants.values())
    if len(keys) < len(config.tenants) or keys & set(config.api_key):
        raise ConfigError(
            "--tenant-keys: a key must belong to one tenant, and not to --api-key too"
        )
    if config.root_path and not config.root_path.startswith("/"):
        raise ConfigError(f"--root-path must begin with /, got {config.root_path!r}")
