"""Maps any exception to an HTTP status, headers and OpenAI's error body.

This is the only place that maps errors to statuses. It knows no routes.
"""

import math
import re
from difflib import get_close_matches
from typing import Literal, NamedTuple

import msgspec
from msgspec import Struct, inspect
from starlette.exceptions import HTTPException

from weir.errors import BadRequest, EngineDead, Overloaded

PATH = re.compile(r" - at (`key` in )?`\$\.?([^`]*)`$")
NAME = re.compile(r"[^\W\d]\w*")
PART = re.compile(r"\.content\[\d+\]\.type$")
UNKNOWN = re.compile(
    r"^Object (contains unknown|missing required) field `([^`]*)`(?: - at `\$\.?([^`]*)`)?$"
)

ROUTING = {
    404: "There is no such route: OpenAI's clients need an address that ends with /v1, others one "
    "that does not; GET /openapi.json lists all routes.",
    405: "This route does not take this method; see the Allow header.",
}
UNFORESEEN = "The server failed to answer; its log has the reason under this X-Request-Id."


class ErrorDetail(Struct):
    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorBody(Struct):
    """OpenAI's error shape, the only one this server sends; `type` makes it Anthropic's too."""

    error: ErrorDetail
    type: Literal["error"] = "error"


class Problem(NamedTuple):
    status: int
    body: ErrorBody
    headers: dict[str, str]


def problem(error: Exception) -> Problem:
    """The answer to `error`. For an unforeseen one it reveals nothing of the server's internals."""
    status, headers = 500, dict[str, str]()
    detail = ErrorDetail(str(error), "invalid_request_error")
    if isinstance(error, BadRequest):
        status, detail.param, detail.code = error.status, error.param, error.code
        if status == 401:
            headers, detail.type = {"www-authenticate": "Bearer"}, "authentication_error"
    elif isinstance(error, Overloaded):
        status, detail.type, detail.code = 503, "overloaded_error", "overloaded"
        seconds = math.ceil(error.retry_after)
        headers = {"retry-after": str(seconds)} if seconds else {"x-should-retry": "false"}
    elif isinstance(error, EngineDead):
        status, detail.type, detail.code = 503, "engine_error", "engine_error"
        headers = {"retry-after": "5"}
    elif isinstance(error, HTTPException):
        status, headers = error.status_code, dict(error.headers or {})
        detail.message = ROUTING.get(status, error.detail)
    else:
        detail.message = UNFORESEEN
        detail.type = detail.code = "internal_error"
    return Problem(status, ErrorBody(detail), headers)


def invalid(error: Exception, kind: type[Struct]) -> BadRequest:
    """Turn a failure to decode a body into a `BadRequest` that names the field."""
    if isinstance(error, UnicodeDecodeError):
        return BadRequest("The body is not valid UTF-8.", code="invalid_json")
    if isinstance(error, RecursionError):
        return BadRequest("The body is nested too deeply.", code="invalid_json")
    message = str(error)
    if not isinstance(error, msgspec.ValidationError):
        why = message.removeprefix("JSON is malformed: ")
        text = f"The body is not valid JSON: {why[0].lower()}{why[1:]}."
        return BadRequest(text, code="invalid_json")
    if found := UNKNOWN.match(message):
        param = ".".join(part for part in (found[3], found[2]) if part)
        if found[1].startswith("missing"):
            return BadRequest(f"{param} is required.", param=param, code="missing_field")
        text = f"{param} is not a field of this request"
        fields = names(inspect.type_info(kind), NAME.findall(found[3] or ""))
        close = get_close_matches(found[2].lower(), fields, 1, cutoff=0.74)
        text += f"; did you mean {close[0]}?" if close else "."
        return BadRequest(text, param=param, code="unknown_field")
    found = PATH.search(message)
    if found is None:
        return BadRequest(f"{message}.", code="invalid_type")
    param, rule = found[2], message[: found.start()]
    if rule.startswith("Expected `null`"):
        text = f"{param} is not supported by this server: leave it out."
        return BadRequest(text, param=param, code="unsupported_field")
    if PART.search(param):
        rule = "Expected text, not images or other parts: this server reads no others"
    elif rule.startswith("Invalid"):
        known = choices(inspect.type_info(kind), NAME.findall(param))
        rule += f", expected one of {', '.join(known)}" if known else ""
    where = f"a key of {param}" if found[1] else param
    return BadRequest(f"{where}: {rule[0].lower()}{rule[1:]}.", param=param, code="invalid_value")


def choices(kind: inspect.Type, path: list[str]) -> list[str]:
    """The values of a field that may have one of a few; it is so many names within `kind`."""
    literals = [one for one in types(kind, path) if isinstance(one, inspect.LiteralType)]
    return [str(value) for one in literals for value in one.values]


def names(kind: inspect.Type, path: list[str]) -> list[str]:
    """The fields of the object so many names within `kind`."""
    objects = [one for one in types(kind, path) if isinstance(one, inspect.StructType)]
    return [field.encode_name for one in objects for field in one.fields]


def types(kind: inspect.Type, path: list[str]) -> list[inspect.Type]:
    """The types that a field, so many names within `kind`, or its items may have."""
    match kind:
        case inspect.Metadata(type=inner) | inspect.ListType(item_type=inner):
            return types(inner, path)
        case inspect.UnionType(types=several):
            return [one for part in several for one in types(part, path)]
        case inspect.StructType(tag_field=str(field), tag=tag) if path == [field]:
            return [inspect.LiteralType((tag,))]
        case inspect.StructType(fields=fields) if path:
            found = (one.type for one in fields if one.encode_name == path[0])
            return [one for part in found for one in types(part, path[1:])]
    return [] if path else [kind]
