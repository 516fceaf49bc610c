"""From a `Config` to a tokenizer and a client; no torch. `weir.build` makes the engine."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from importlib import import_module
from pathlib import Path
from typing import Any

from weir import hub, policies
from weir.client import Limits, Remote
from weir.client.base import Options
from weir.client.expect import Ranker
from weir.client.process import Timeouts
from weir.config import Config
from weir.errors import ConfigError
from weir.folders import cache_folder
from weir.gguf import GGUF
from weir.grammar.compiler import Compiler
from weir.grammar.tokens import Tokens
from weir.models.shape import RECOMMENDED, read_spec, recommended
from weir.params import SamplingParams
from weir.ranker.log import LengthLog
from weir.text import Text
from weir.text.folder import lacks_tokenizer
from weir.text.vocabulary import numbered

log = logging.getLogger(__name__)


def text(config: Config) -> Text:
    """Tokenizer and chat template; fetches the model if it is not here. Raises `ConfigError`."""
    name = config.tokenizer or config.model
    with _named("--tokenizer") if config.tokenizer else nullcontext():
        source = hub.resolve(name, config.revision, config.download_dir)
    if source.kind == "gguf":
        return Text.from_gguf(GGUF.open(source.path), config.chat_template)
    if config.load_format == "dummy" and not config.tokenizer and lacks_tokenizer(source.path):
        return Text(numbered(read_spec(source.path).vocab), config.chat_template)
    return Text.from_folder(source.path, config.chat_template)


def tokens(config: Config) -> Tokens:
    """The vocabulary as grammars need it. Raises `ConfigError`."""
    read = text(config)
    return Tokens(read.pieces(True), read.eos, lambda one: read.encode(one, False))


def sampling(config: Config) -> SamplingParams:
    """The default sampling parameters of requests. Raises `ConfigError`."""
    where = config.generation_config
    if where in ("none", "vllm", "openai"):
        return SamplingParams()
    if where in ("auto", "model"):
        path = hub.resolve(config.model, config.revision, config.download_dir).path
    elif not (path := Path(where) / "generation_config.json").is_file():
        raise ConfigError(
            f"--generation-config: there is no {path}: give auto, none or a folder that has one"
        )
    found: SamplingParams = recommended(path)
    if found != SamplingParams():
        said = {name: getattr(found, name) for name in RECOMMENDED}
        log.info(
            "requests are sampled with %s by default, from the model's generation_config.json; "
            "--generation-config none: OpenAI's defaults",
            ", ".join(f"{k} {v:g}" for k, v in said.items() if v != getattr(SamplingParams(), k)),
        )
    return found


def compiler(config: Config) -> Compiler:
    """Compiles the grammars that requests ask for; starts nothing before the first."""
    folder = cache_folder("grammars")
    return Compiler(config.grammar_backend, config.grammar_timeout, folder)


def lengths(config: Config) -> LengthLog | None:
    """Where lengths of answers are logged, if anywhere. Raises `ConfigError`."""
    with _named("--length-log"):
        return LengthLog(Path(config.length_log)) if config.length_log else None


def ranker(config: Config) -> Ranker | None:
    """The predictor of output lengths, if the scheduling policy needs one, adapted to the lengths
    that the length log has of this model. Raises `ConfigError`."""
    if not policies.ranked(config):
        return None
    files: Any = import_module("weir.ranker.files")  # they import NumPy: only if needed
    adapt: Any = import_module("weir.ranker.adapt")
    with _named("--ranker"):
        base = files.shipped() if config.ranker == "auto" else files.load(Path(config.ranker))
    made: Ranker = adapt.Adapted(base, config.ranker_memory)
    if config.ranker_memory and (log := lengths(config)) is not None:
        with _named("--length-log"):
            made.learn(log.latest(config.names[0], config.ranker_memory))
    return made


@contextmanager
def _named(flag: str) -> Iterator[None]:
    """Begin the message of a `ConfigError` with the flag that caused it."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"{flag}: {error}") from None


def options(config: Config) -> Options:
    """Arguments of every client of the model. Raises `ConfigError`."""
    return {
        "limits": Limits(config.max_num_queued_reqs, config.max_num_queued_tokens),
        "seed": config.seed,
        "compiler": compiler(config),
        "ranker": ranker(config),
        "lengths": lengths(config),
        "sampling": sampling(config),
    }


def remote(config: Config) -> Remote:
    """A client whose engine runs in a process of its own, not started yet. Raises `ConfigError`."""
    stop = config.step_timeout if config.disk_cache else 5.0
    return Remote(
        config,
        text(config),
        config.names,
        timeouts=Timeouts(config.step_timeout, config.heartbeat_timeout, stop=stop),
        **options(config),
    )
