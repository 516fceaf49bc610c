"""Errors as HTTP sees them: any exception as a status, headers and OpenAI's error body.

The one place that knows which error becomes which status; nothing here knows a route.
"""

from __future__ import annotations

import math
import re
from typing import NamedTuple

import msgspec
from msgspec import Struct
from starlette.exceptions import HTTPException

from weir.errors import BadRequest, EngineDead, Overloaded

PATH = re.compile(r" - at (`key` in )?`\$\.?([^`]*)`$")
PART = re.compile(r"\.content\[\d+\]\.type$")
UNKNOWN = re.compile(
    r"^Object (contains unknown|missing required) field `([^`]*)`(?: - at `\$\.?([^`]*)`)?$"
)


class ErrorDetail(Struct):
    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorBody(Struct):
    """OpenAI's error shape, the only one this server sends."""

    error: ErrorDetail


class Problem(NamedTuple):
    status: int
    body: ErrorBody
    headers: dict[str, str]


def problem(error: Exception) -> Problem:
    """What the client is told of `error`; of an unforeseen one, nothing about our insides."""
    if isinstance(error, BadRequest):
        kind = "authentication_error" if error.status == 401 else "invalid_request_error"
        headers = {"www-authenticate": "Bearer"} if error.status == 401 else {}
        return _problem(error.status, str(error), kind, error.param, error.code, headers)
    if isinstance(error, Overloaded):
        headers = {"retry-after": str(max(1, math.ceil(error.retry_after)))}
        return _problem(503, str(error), "overloaded_error", None, "overloaded", headers)
    if isinstance(error, EngineDead):
        headers = {"retry-after": "5"}
        return _problem(503, str(error), "engine_error", None, "engine_error", headers)
    if isinstance(error, HTTPException):
        message = {
            404: "There is no such route; GET /openapi.json lists them all.",
            405: "This route does not take this method; see the Allow header.",
        }.get(error.status_code, error.detail)
        headers = dict(error.headers or {})
        return _problem(error.status_code, message, "invalid_request_error", None, None, headers)
    message = "The server failed to answer; its log has the reason under this X-Request-Id."
    return _problem(500, message, "internal_error", None, "internal_error", {})


def _problem(
    status: int,
    message: str,
    kind: str,
    param: str | None,
    code: str | None,
    headers: dict[str, str],
) -> Problem:
    return Problem(status, ErrorBody(ErrorDetail(message, kind, param, code)), headers)


def invalid(error: Exception) -> BadRequest:
    """A failure to decode a body, as a `BadRequest` that names the field."""
    if isinstance(error, UnicodeDecodeError):
        return BadRequest("The body is not valid UTF-8.", code="invalid_json")
    if isinstance(error, RecursionError):
        return BadRequest("The body is nested too deeply.", code="invalid_json")
    message = str(error)
    if not isinstance(error, msgspec.ValidationError):
        return BadRequest(f"The body is not valid JSON: {message}.", code="invalid_json")
    if found := UNKNOWN.match(message):
        param = ".".join(part for part in (found[3], found[2]) if part)
        if found[1].startswith("missing"):
            return BadRequest(f"{param} is required.", param=param, code="missing_field")
        return BadRequest(
            f"{param} is not a field of this request.", param=param, code="unknown_field"
        )
    found = PATH.search(message)
    if found is None:
        return BadRequest(f"{message}.", code="invalid_type")
    param, rule = found[2], message[: found.start()]
    if rule.startswith("Expected `null`"):
        text = f"{param} is not supported by this server: leave it out."
        return BadRequest(text, param=param, code="unsupported_field")
    if PART.search(param):
        rule = "Expected 'text', the only type of part that this server reads"
    where = f"a key of {param}" if found[1] else param
    return BadRequest(f"{where}: {rule[0].lower()}{rule[1:]}.", param=param, code="invalid_value")
