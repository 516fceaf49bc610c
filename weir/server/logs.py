"""Log lines as text or JSON, each with the id of its HTTP request."""

import asyncio
import logging
import sys
import time
from contextvars import ContextVar

import msgspec

from weir.client import Assembly, Client

log = logging.getLogger(__name__)

PULSE = 10.0  # seconds

request_id: ContextVar[str] = ContextVar("request_id", default="")
"""Set in the task that answers a request; its log lines carry the id."""

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
    """Log to stderr. level: a level name of `logging`. format: "text" or "json"."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(LogFormatter(as_json=format == "json"))
    for name in ("weir", "uvicorn"):
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.propagate = False
        logger.setLevel(level.upper())
    logging.getLogger("uvicorn").setLevel(logging.ERROR)  # malformed HTTP is answered, not logged


def log_finished(finished: Assembly) -> None:
    """A listener that logs the end of every request, leaving out absent fields."""
    timing, usage = finished.timing, finished.usage
    moments = {"queue_s": timing.started, "ttft_s": timing.first, "e2e_s": time.monotonic()}
    fields = {
        "id": finished.id,
        "user": finished.submits[0].user,
        "program": finished.program,
        "finish": ",".join(finished.finish_reasons),
        "prompt_tokens": usage.prompt_tokens,
        "cached_tokens": usage.cached_tokens,
        "completion_tokens": usage.completion_tokens,
        **{name: round(at - timing.arrival, 4) for name, at in moments.items() if at >= 0},
        "preempted": finished.preempted,
        "error": finished.error,
    }
    told = {name: value for name, value in fields.items() if value != ""}
    logging.getLogger("weir.requests").info("request ended", extra=told)


async def pulse(client: Client) -> None:
    """Log the work of the last `PULSE` seconds, if there was any, until cancelled."""
    before = _done(client)
    while True:
        await asyncio.sleep(PULSE)
        stats, now = client.stats, _done(client)
        grown = {name: now[name] - before[name] for name in now}
        if any(grown.values()):
            fields = {
                "running": stats.running,
                "waiting": stats.waiting,
                "prompt_tokens_s": round(grown["prompt"] / PULSE, 1),
                "cached_share": round(grown["cached"] / max(1, grown["prompt"]), 3),
                "completion_tokens_s": round(grown["generated"] / PULSE, 1),
                "kv_used": round(stats.pages_used / max(1, stats.pages_total), 3),
                "preempted": grown["preempted"],
                "refused": grown["refused"],
            }
            log.info("the last %g s", PULSE, extra=fields)
        before = now


def _done(client: Client) -> dict[str, int]:
    """The counters so far; they only grow."""
    stats = client.stats
    return {
        "prompt": stats.prompt_tokens,
        "cached": stats.hit_tokens,
        "generated": stats.generated_tokens,
        "preempted": stats.preemptions,
        "refused": sum(client.rejected.values()),
    }
