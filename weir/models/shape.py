"""The shape of a model from its files, without weights and without PyTorch."""

from pathlib import Path

from weir.errors import BadRequest, ConfigError
from weir.gguf import GGUF
from weir.models.config import from_config
from weir.models.metadata import from_gguf
from weir.models.scheme import Scheme, read_scheme
from weir.params import SamplingParams, convert
from weir.rows import read_object
from weir.spec import Spec

RECOMMENDED = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
"""Parameters taken from a `generation_config.json`, beside the tokens that end an answer."""


def read_spec(path: str | Path) -> Spec:
    """The shape of the model at `path`. Raises ConfigError."""
    path = Path(path)
    if path.suffix == ".gguf":
        return from_gguf(GGUF.open(path))
    file = _config_file(path)
    return from_config(read_object(file), read_object(file.with_name("generation_config.json")))


def scheme_of(path: Path) -> Scheme | None:
    """How the weights of a folder are quantised."""
    return read_scheme(read_object(_config_file(path)))


def recommended(path: Path) -> SamplingParams:
    """The sampling that the makers of the model at `path`, a folder or a file in it, recommend.
    Raises `ConfigError` if its `generation_config.json` is invalid."""
    file = (path if path.is_dir() else path.parent) / "generation_config.json"
    said = read_object(file)
    try:
        params = convert({k: said[k] for k in RECOMMENDED if said.get(k) is not None})
        params.check(vocab=0)
    except BadRequest as error:
        raise ConfigError(f"{file}: {error}; mend it, or use --generation-config none") from None
    return params


def _config_file(path: Path) -> Path:
    """The `config.json` in a folder, or `path` itself if it is a file."""
    file = path / "config.json" if path.is_dir() else path
    if not file.is_file():
        raise ConfigError(f"no config.json at {path}: name a model folder or a .gguf file")
    return file
