"""Chooses the backend of a program."""

from weir.errors import ConfigError
from weir.lang.backend.base import Backend
from weir.lang.backend.endpoint import RuntimeEndpoint
from weir.lang.backend.runtime import Runtime
from weir.lang.loop import spawn, wait

_named: dict[str, Backend] = {}
_default: list[Backend] = []


def set_default_backend(backend: Backend | str) -> None:
    """Set the backend of programs that name none: a backend, a model's name or a server's URL."""
    _default[:] = [chosen(backend)]


def chosen(backend: Backend | str | None = None) -> Backend:
    """The backend that a caller gave, or the default. A name's backend is started once and kept.
    Raises ConfigError if there is no default."""
    if isinstance(backend, str):
        if backend not in _named:
            remote = backend.startswith(("http://", "https://"))
            _named[backend] = RuntimeEndpoint(backend) if remote else Runtime(backend)
        return _named[backend]
    if backend is not None:
        return backend
    if not _default:
        raise ConfigError(
            "no backend: call weir.set_default_backend(weir.Runtime('smollm2-135m')), or give "
            "run and run_batch a backend"
        )
    return _default[0]


def flush_cache(backend: Backend | str | None = None) -> None:
    """Drop all cached prefixes of a backend."""
    wait(spawn(chosen(backend).flush()))
