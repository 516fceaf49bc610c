"""From a `Config` to a tokenizer and a client; no torch. `weir.build` makes the engine."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

from weir import hub, policies
from weir.client import Limits, Remote
from weir.client.expect import Ranker
from weir.config import Config
from weir.gguf import GGUF
from weir.grammar.compiler import Compiler
from weir.text import Text
from weir.text.folder import lacks_tokenizer, read_vocab
from weir.text.numbered import numbered


def text(config: Config) -> Text:
    """Tokenizer and chat template; fetches the model if it is not here. Raises `ConfigError`."""
    name = config.tokenizer or config.model
    source = hub.resolve(name, config.revision, config.download_dir)
    if source.kind == "gguf":
        return Text.from_gguf(GGUF.open(source.path), config.chat_template)
    if config.load_format == "dummy" and not config.tokenizer and lacks_tokenizer(source.path):
        return Text(numbered(read_vocab(source.path)), config.chat_template)
    return Text.from_folder(source.path, config.chat_template)


def limits(config: Config) -> Limits:
    return Limits(config.max_num_queued_reqs, config.max_num_queued_tokens)


def compiler(config: Config) -> Compiler:
    """Compiles the grammars that requests ask for; starts nothing before the first."""
    folder = hub.cache_folder("grammars")
    return Compiler(config.grammar_backend, config.grammar_timeout, folder)


def ranker(config: Config) -> Ranker | None:
    """What predicts lengths for the scheduling policy, if it asks. Raises `ConfigError`."""
    if not policies.ranked(config):
        return None
    files: Any = import_module("weir.ranker.files")  # NumPy: nobody else waits for its import
    made: Ranker = files.shipped() if config.ranker == "auto" else files.load(Path(config.ranker))
    return made


def remote(config: Config) -> Remote:
    """A client whose engine runs in a process of its own, not started yet. Raises `ConfigError`."""
    return Remote(
        config,
        text(config),
        config.names,
        limits=limits(config),
        seed=config.seed,
        compiler=compiler(config),
        ranker=ranker(config),
        step_timeout=config.step_timeout,
        heartbeat_timeout=config.heartbeat_timeout,
        stop_timeout=config.step_timeout if config.disk_cache else 5.0,
    )
