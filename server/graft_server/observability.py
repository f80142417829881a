"""What an operator sees: log lines that carry the request's id, and the figures behind ``GET /metrics``."""

from __future__ import annotations

import json
import logging
import re
import sys
import time
import uuid
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, Literal, TextIO

from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest

from graft_server.engine.stats_cache import StatsCache
from graft_server.metrics.by_adapter import RequestFigures
from graft_server.metrics.of_engine import EngineFigures

#: The id of the request being served, for log lines and error documents.
request_id: ContextVar[str | None] = ContextVar("graft_request_id", default=None)

LogFormat = Literal["auto", "plain", "json"]

#: Not a key that was put into the wrong header: it would be logged.
_ACCEPTABLE_ID = re.compile(r"(?!graft_)[A-Za-z0-9._-]{1,64}")
_STANDARD = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName", "color_message"}


def accept_request_id(given: str | None) -> str:
    """The caller's own request id where it is a harmless one, else a new one."""
    if given is not None and _ACCEPTABLE_ID.fullmatch(given):
        return given
    return uuid.uuid4().hex


class PlainFormatter(logging.Formatter):
    """``12:30:01 info    graft_server.app  text [request id]``."""

    def format(self, record: logging.LogRecord) -> str:
        clock = time.strftime("%H:%M:%S", time.localtime(record.created))
        line = f"{clock} {record.levelname.lower():<7} {record.getMessage()}"
        if extra := _extra(record):
            line += "  " + " ".join(f"{key}={value}" for key, value in extra.items())
        if current := request_id.get():
            line += f" [{current}]"
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return line


class JsonFormatter(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_extra(record),
        }
        if current := request_id.get():
            line["request_id"] = current
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str, ensure_ascii=False)


def configure_logging(level: str, style: LogFormat = "auto", stream: TextIO | None = None) -> None:
    """Send every log line to ``stream`` (stderr): human lines on a terminal, JSON in a pipe, unless told."""
    stream = stream or sys.stderr
    plain = stream.isatty() if style == "auto" else style == "plain"
    handler = logging.StreamHandler(stream)
    handler.setFormatter(PlainFormatter() if plain else JsonFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    for name in ("graft_server", "graft_plugins"):
        logging.getLogger(name).setLevel(level.upper())


class Metrics:
    """Prometheus figures of one server. Every label has few values: no ids, no raw paths, and no more names of adapters
    than ``adapters``, however many there are."""

    def __init__(self, adapters: int) -> None:
        self.registry = CollectorRegistry()
        self.http_requests = Counter(
            "graft_http_requests",
            "HTTP requests by route and status class.",
            ["method", "route", "status"],
            registry=self.registry,
        )
        self.http_in_flight = Gauge("graft_http_in_flight", "HTTP requests being answered.", registry=self.registry)
        self.requests = RequestFigures(adapters)
        self.registry.register(self.requests)
        self.rejected = Counter(
            "graft_rejected", "Requests refused because the queue was full.", registry=self.registry
        )
        self.rate_limited = Counter(
            "graft_rate_limited",
            "Requests refused by a limit, by whose (key or adapter) and of what (requests or tokens).",
            ["owner", "figure"],
            registry=self.registry,
        )
        self.queued = Gauge("graft_queued", "Model requests waiting to enter the engine.", registry=self.registry)
        self.running = Gauge("graft_running", "Model requests in the engine.", registry=self.registry)
        self.engine_restarts = Gauge("graft_engine_restarts", "Times the engine was rebuilt.", registry=self.registry)
        self.ready = Gauge("graft_ready", "1 while requests can be answered.", registry=self.registry)

    def watch(
        self,
        *,
        queued: Callable[[], int],
        running: Callable[[], int],
        restarts: Callable[[], int],
        ready: Callable[[], bool],
        engine: StatsCache,
    ) -> None:
        """Read these figures when they are asked for."""
        self.queued.set_function(queued)
        self.running.set_function(running)
        self.engine_restarts.set_function(restarts)
        self.ready.set_function(ready)
        self.registry.register(EngineFigures(engine))

    def render(self) -> bytes:
        """The figures in Prometheus' text format. Takes milliseconds where there are many adapters: call it in a
        thread."""
        return generate_latest(self.registry)


def _extra(record: logging.LogRecord) -> dict[str, Any]:
    return {key: value for key, value in vars(record).items() if key not in _STANDARD}
