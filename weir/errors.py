"""Errors a caller can act on. Every one says in a sentence what is wrong and what to do."""


class WeirError(Exception):
    """Base of every error raised on purpose."""


class BadRequest(WeirError):
    """The request cannot be served as it stands; sending it again unchanged will not help.

    `param` names the offending field as the client wrote it; `status` is 400, 404, 413, 415 or 422.
    """

    def __init__(
        self, message: str, *, param: str | None = None, code: str | None = None, status: int = 400
    ):
        super().__init__(message)
        self.param = param
        self.code = code
        self.status = status


class Overloaded(WeirError):
    """The queue is full or the engine is not ready. Try again after `retry_after` seconds; 0: it
    will not help."""

    def __init__(self, message: str, *, retry_after: float = 1.0):
        super().__init__(message)
        self.retry_after = retry_after


class GrammarError(WeirError):
    """An answer cannot go on under its grammar."""


class EngineDead(WeirError):
    """The engine process ended while this request was in it."""


class ConfigError(WeirError):
    """A flag, file or machine that the engine cannot be started with."""
