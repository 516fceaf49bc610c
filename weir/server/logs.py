"""Log lines, as text or JSON, each with the id of the HTTP request it belongs to."""

import logging
import sys
import time
from contextvars import ContextVar

import msgspec

from weir.client import Assembly

request_id: ContextVar[str] = ContextVar("request_id", default="")
"""Set for the task that answers a request; what it logs carries it."""

STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "color_message"}
encode = msgspec.json.Encoder(enc_hook=str).encode


class LogFormatter(logging.Formatter):
    """`extra` fields become keys of the JSON object, or `key=value` at the end of the text."""

    def __init__(self, *, as_json: bool):
        super().__init__()
        self._as_json = as_json

    def format(self, record: logging.LogRecord) -> str:
        fields = {k: v for k, v in vars(record).items() if k not in STANDARD}
        if current := request_id.get():
            fields = {"request_id": current} | fields
        trouble = self.formatException(record.exc_info) if record.exc_info else ""
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        moment = f"{moment}.{int(record.msecs):03d}Z"
        if self._as_json:
            line = {
                "time": moment,
                "level": record.levelname.lower(),
                "logger": record.name,
                "message": record.getMessage(),
            } | fields
            return encode(line | ({"exception": trouble} if trouble else {})).decode()
        words = [moment, record.levelname, record.getMessage()]
        words += [f"{key}={value}" for key, value in fields.items()]
        return " ".join(words).replace("\n", "\\n") + (f"\n{trouble}" if trouble else "")


def configure(level: str, format: str) -> None:
    """Send the log of this process to stderr. level: a name of `logging`; format: text or json."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(LogFormatter(as_json=format == "json"))
    for name in ("weir", "uvicorn"):
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.propagate = False
        logger.setLevel(level.upper())
    logging.getLogger("uvicorn").setLevel(max(logging.WARNING, logging.getLogger("weir").level))


def log_finished(finished: Assembly) -> None:
    """A listener that logs the end of every request."""
    timing, usage = finished.timing, finished.usage
    since = timing.arrival
    logging.getLogger("weir.requests").info(
        "request ended",
        extra={
            "id": finished.id,
            "finish": ",".join(finished.finish_reasons),
            "prompt_tokens": usage.prompt_tokens,
            "cached_tokens": usage.cached_tokens,
            "completion_tokens": usage.completion_tokens,
            "queue_s": round(timing.started - since, 4) if timing.started >= 0 else None,
            "ttft_s": round(timing.first - since, 4) if timing.first >= 0 else None,
            "e2e_s": round(timing.last - since, 4) if timing.last >= 0 else None,
            "preempted": finished.preempted,
            "error": finished.error,
        },
    )
