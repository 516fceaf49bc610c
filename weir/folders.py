"""Where this user keeps what was fetched, measured or compiled, from one run to the next."""

import os
from pathlib import Path


def cache_folder(kind: str) -> Path:
    """WEIR_CACHE/kind, else XDG_CACHE_HOME/weir/kind. kind: models, native, grammars, profiles."""
    if own := os.environ.get("WEIR_CACHE"):
        return Path(own).expanduser() / kind
    shared = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(shared).expanduser() / "weir" / kind
