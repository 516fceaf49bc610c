"""Generates the OpenAPI document from the endpoints and the types of their bodies and answers."""

import re
from collections.abc import Sequence
from typing import Any

import msgspec

from weir import __version__
from weir.server.endpoint import Endpoint
from weir.server.problems import ErrorBody

REF = "#/components/schemas/{name}"
ERRORS = {
    400: "The request cannot be served as it stands; `error.param` names the field.",
    401: "An API key is needed.",
    404: "The model is not served here.",
    413: "The body is too large.",
    415: "The body is compressed.",
    422: "The request is well-formed but makes no sense.",
    503: "The queue is full, or the engine is starting, restarting or dead. See `Retry-After`.",
}


def document(endpoints: Sequence[Endpoint], *, secured: bool) -> dict[str, Any]:
    """The OpenAPI 3.1 document. secured: whether the server requires an API key."""
    bodies = [endpoint.body for endpoint in endpoints if endpoint.body is not None]
    answers = [endpoint.answer for endpoint in endpoints if endpoint.answer is not None]
    chunks = [endpoint.chunk for endpoint in endpoints if endpoint.chunk is not None]
    kinds = list(dict.fromkeys([ErrorBody, *bodies, *answers, *chunks]))
    schemas, components = msgspec.json.schema_components(kinds, ref_template=REF)
    schema = dict(zip(kinds, schemas, strict=True))
    paths: dict[str, Any] = {}
    for endpoint in endpoints:
        for path in (endpoint.path, *endpoint.aliases):
            shown = path.replace(":path}", "}")
            paths[shown] = {
                method.lower(): _operation(endpoint, shown, method, schema, components)
                for method in endpoint.methods
            }
    top: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {"title": "Weir", "version": __version__, "license": {"name": "Apache-2.0"}},
        "paths": paths,
        "components": {"schemas": components},
    }
    if secured:
        bearer = {"type": "http", "scheme": "bearer"}
        top["components"]["securitySchemes"] = {"key": bearer}
        top["security"] = [{"key": []}]
    return top


def _operation(
    endpoint: Endpoint, path: str, method: str, schema: dict[Any, Any], components: dict[str, Any]
) -> dict[str, Any]:
    content: dict[str, Any] = {}
    if endpoint.answer is not None:
        content[endpoint.media] = {"schema": schema[endpoint.answer]}
    elif endpoint.media != "application/json":
        content[endpoint.media] = {"schema": {"type": "string"}}
    if endpoint.chunk is not None:
        content["text/event-stream"] = {"schema": _event(schema[endpoint.chunk])}
    success: dict[str, Any] = {"description": "Done.", "headers": _headers()}
    if content:
        success["content"] = content
    operation: dict[str, Any] = {
        "operationId": method.lower() + re.sub(r"\W+", "_", path).rstrip("_"),
        "summary": endpoint.summary,
        "responses": {"200": success, **{str(code): _error(code) for code in _codes(endpoint)}},
    }
    parameters = [
        {"name": name.rstrip("}"), "in": "path", "required": True, "schema": {"type": "string"}}
        for name in path.split("{")[1:]
    ]
    if endpoint.body is not None and method == "POST":
        required = "GET" not in endpoint.methods
        body = {"application/json": {"schema": schema[endpoint.body]}}
        operation["requestBody"] = {"required": required, "content": body}
    elif endpoint.body is not None:
        properties = components[endpoint.body.__name__]["properties"]
        parameters += [
            {"name": name, "in": "query", "schema": kind}
            for name, kind in properties.items()
            if kind.get("type") != "array"
        ]
    if parameters:
        operation["parameters"] = parameters
    if endpoint.open:
        operation["security"] = []
    return operation


def _event(chunk: dict[str, Any]) -> dict[str, Any]:
    """Server-sent events whose data is a `chunk` in JSON, an error, or `[DONE]` at the end."""
    data = {"type": "string", "contentMediaType": "application/json", "contentSchema": chunk}
    return {"type": "object", "required": ["data"], "properties": {"data": data}}


def _codes(endpoint: Endpoint) -> list[int]:
    if endpoint.generates:
        return list(ERRORS)
    codes = [400] if endpoint.body is not None else []
    codes += [] if endpoint.open else [401]
    codes += [404] if "{" in endpoint.path or endpoint.body is not None else []
    codes += [413, 415, 422] if endpoint.body is not None and "POST" in endpoint.methods else []
    return [*codes, 503] if endpoint.open else codes


def _error(code: int) -> dict[str, Any]:
    headers = _headers()
    if code == 503:
        headers["Retry-After"] = {"schema": {"type": "string"}, "description": "Seconds."}
    body = {"schema": {"$ref": REF.format(name=ErrorBody.__name__)}}
    return {"description": ERRORS[code], "headers": headers, "content": {"application/json": body}}


def _headers() -> dict[str, Any]:
    return {"X-Request-Id": {"schema": {"type": "string"}, "required": True}}
