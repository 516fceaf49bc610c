"""Middleware that gives every HTTP request an id, a log line, a count and an answer on errors."""

import logging
import re
import time
from uuid import uuid4

import msgspec
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from weir.server import logs
from weir.server.endpoint import ClientGone, Serving
from weir.server.problems import problem
from weir.server.service import Service

log = logging.getLogger(__name__)
access = logging.getLogger("weir.access")

ID = re.compile(r"[A-Za-z0-9._:/@-]{1,128}")
CLIENT_CLOSED = 499  # nginx's status; counted and logged, never sent


async def explain(request: Request, error: Exception) -> Response:
    """Turn any exception into a response in OpenAI's error shape."""
    status, body, headers = problem(error)
    return Response(msgspec.json.encode(body), status, headers, "application/json")


class Edge:
    """Middleware. Keeps a valid X-Request-Id, replaces any other, and sends it with the answer."""

    def __init__(self, app: ASGIApp, service: Service):
        self.app = app
        self.service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        identity = given if ID.fullmatch(given) else uuid4().hex
        scope.setdefault("state", {})["request_id"] = identity
        status = 0

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message = {**message, "headers": list(message["headers"])}
                MutableHeaders(scope=message)["x-request-id"] = identity
            await send(message)

        token = logs.request_id.set(identity)
        began = time.monotonic()
        self.service.open += 1
        try:
            await self.app(scope, receive, noting)
        except ClientGone:
            status = CLIENT_CLOSED
        except Exception as error:
            log.exception("%s %s failed", scope["method"], scope["path"])
            if status == 0:
                await (await explain(Request(scope), error))(scope, receive, noting)
        finally:
            self.service.open -= 1
            self._note(scope, status, time.monotonic() - began)
            logs.request_id.reset(token)

    def _note(self, scope: Scope, status: int, seconds: float) -> None:
        """Count the answer by route, not by path: the number of paths is unbounded."""
        serving = scope.get("endpoint")
        route = serving.endpoint.path if isinstance(serving, Serving) else "other"
        self.service.metrics.answered(route, status)
        if self.service.config.enable_log_requests:
            access.info(
                "%s %s %d %.1f ms",
                scope["method"],
                scope["path"],
                status,
                seconds * 1e3,
                extra={"client": (scope.get("client") or ("-",))[0]},
            )
