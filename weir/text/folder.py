"""Reads the tokenizer of a Hugging Face model folder."""

from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from weir.errors import ConfigError
from weir.rows import read_object
from weir.text.vocabulary import Vocabulary


def read_folder(path: Path) -> Vocabulary:
    """Read tokenizer.json and the files beside it. Raises `ConfigError`, which names the file."""
    config = read_object(path / "tokenizer_config.json")
    variables = _special(read_object(path / "special_tokens_map.json")) | _special(config)
    templates = _templates(path, config)
    if (path / "tokenizer.json").is_file():
        try:
            tokenizer = Tokenizer.from_file(str(path / "tokenizer.json"))
        except Exception as error:  # the library's only error type
            raise ConfigError(f"{path / 'tokenizer.json'} cannot be read: {error}") from error
    elif not (path / "config.json").is_file() and not config:
        raise ConfigError(f"no config.json at {path}: name a model folder or a .gguf file")
    else:
        tokenizer, variables = _convert(path, variables)
    # settings from training that files may still have; they would cut prompts silently
    tokenizer.no_truncation()
    tokenizer.no_padding()
    bos = variables.get("bos_token")
    return Vocabulary(
        tokenizer=tokenizer,
        bos=None if bos is None else tokenizer.token_to_id(bos),
        eos=_eos(path, tokenizer, variables.get("eos_token")),
        templates=templates,
        variables=variables,
    )


def lacks_tokenizer(path: Path) -> bool:
    """Whether there is no tokenizer: in a folder, or because `path` is only a config.json."""
    names = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json")
    return path.is_file() or not any((path / name).is_file() for name in names)


def _special(config: dict[str, Any]) -> dict[str, str]:
    """bos_token and so on, which files give as a string or as an object with it as `content`."""
    found = {
        name: value.get("content") if isinstance(value, dict) else value
        for name, value in config.items()
        if name.endswith("_token")
    }
    return {name: value for name, value in found.items() if isinstance(value, str)}


def _templates(path: Path, config: dict[str, Any]) -> dict[str, str]:
    """Chat templates by name; separate files take precedence over tokenizer_config.json."""
    value = read_object(path / "chat_template.json").get(
        "chat_template", config.get("chat_template")
    )
    if isinstance(value, str):
        value = [{"name": "default", "template": value}]
    templates = {
        entry["name"]: entry["template"]
        for entry in value or ()
        if isinstance(entry, dict) and {"name", "template"} <= entry.keys()
    }
    named = sorted((path / "additional_chat_templates").glob("*.jinja"))
    for file in [*named, path / "chat_template.jinja"]:
        if file.is_file():
            name = "default" if file.parent == path else file.stem
            templates[name] = file.read_text(encoding="utf-8")
    return templates


def _eos(path: Path, tokenizer: Tokenizer, token: str | None) -> list[int]:
    """The tokenizer's EOS, then those of generation_config.json or, if it has none, config.json."""
    found = [] if token is None else [tokenizer.token_to_id(token)]
    for name in ("generation_config.json", "config.json"):
        value = read_object(path / name).get("eos_token_id")
        if value is not None:
            found += value if isinstance(value, list) else [value]
            break
    return list(dict.fromkeys(n for n in found if isinstance(n, int)))


def _convert(path: Path, variables: dict[str, str]) -> tuple[Tokenizer, dict[str, str]]:
    """The tokenizer and variables, converted by transformers from an older format
    (tokenizer.model, vocab.json). Raises `ConfigError`."""
    try:
        from transformers import AutoTokenizer
    except ImportError as error:
        raise ConfigError(
            f"{path} has no tokenizer.json; install transformers to convert its tokenizer, "
            "or give another folder with --tokenizer"
        ) from error
    try:
        converted = AutoTokenizer.from_pretrained(path, local_files_only=True)
        tokenizer = Tokenizer.from_str(converted.backend_tokenizer.to_str())
    except Exception as error:  # whatever its many converters raise
        raise ConfigError(
            f"{path} has no tokenizer.json, and transformers cannot make one: {error}"
        ) from error
    return tokenizer, variables | _special(converted.special_tokens_map)
