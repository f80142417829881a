"""A scripted HTTP server on a loopback socket: answers what a test tells it, and remembers what it was asked."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from email.message import Message
from email.parser import BytesParser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from pydantic import BaseModel


@dataclass
class Asked:
    """A request as it arrived."""

    method: str
    path: str
    query: dict[str, list[str]]
    headers: Message
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)

    def form(self) -> tuple[dict[str, str], dict[str, bytes]]:
        """Fields and files of a multipart body."""
        head = f"Content-Type: {self.headers['content-type']}\r\n\r\n".encode()
        fields: dict[str, str] = {}
        files: dict[str, bytes] = {}
        for part in BytesParser().parsebytes(head + self.body).get_payload():
            content = part.get_payload(decode=True)
            if (name := part.get_filename()) is not None:
                files[name] = content
            else:
                fields[part.get_param("name", header="content-disposition")] = content.decode()
        return fields, files


@dataclass
class Answer:
    """What is sent back. Pieces are sent as chunks; ``breaks`` cuts the connection after them."""

    status: int = 200
    pieces: Iterable[bytes] = ()
    headers: dict[str, str] = field(default_factory=dict)
    breaks: bool = False


Reply = Answer | Callable[[Asked], Answer]


def document(value: BaseModel | list[Any] | dict[str, Any], status: int = 200) -> Answer:
    return Answer(status, [json.dumps(_plain(value)).encode()], {"Content-Type": "application/json"})


def problem(status: int, detail: str, *, code: str = "some-code", **more: Any) -> Answer:
    headers = {"Content-Type": "application/problem+json", **more.pop("headers", {})}
    body = {"title": "A problem", "status": status, "detail": detail, "code": code, **more}
    return Answer(status, [json.dumps(body).encode()], headers)


def sse(*events: tuple[str, int | None, BaseModel], breaks: bool = False) -> Answer:
    pieces = [
        "".join(
            [f"id: {seq}\n" if seq is not None else "", f"event: {name}\n", f"data: {body.model_dump_json()}\n\n"]
        ).encode()
        for name, seq, body in events
    ]
    return Answer(200, pieces, {"Content-Type": "text/event-stream"}, breaks)


def ndjson(*lines: BaseModel, breaks: bool = False) -> Answer:
    pieces = [line.model_dump_json(exclude_none=True).encode() + b"\n" for line in lines]
    return Answer(200, pieces, {"Content-Type": "application/x-ndjson"}, breaks)


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    return [_plain(item) for item in value] if isinstance(value, list) else value


class LittleServer:
    """Answers by route. A route's answers are used up in turn; the last one stays."""

    def __init__(self) -> None:
        self.asked: list[Asked] = []
        self._routes: dict[tuple[str, str], list[Reply]] = {}
        self._lock = threading.Lock()
        self.url = ""

    def on(self, method: str, path: str, *replies: Reply) -> None:
        self._routes[method, path] = list(replies)

    def reply(self, asked: Asked) -> Answer:
        with self._lock:
            self.asked.append(asked)
            replies = self._routes.get((asked.method, asked.path))
            if replies is None:
                return problem(404, f"no route {asked.method} {asked.path}", code="no-route")
            reply = replies.pop(0) if len(replies) > 1 else replies[0]
        return reply if isinstance(reply, Answer) else reply(asked)

    def paths(self) -> list[str]:
        return [f"{asked.method} {asked.path}" for asked in self.asked]


@contextmanager
def running(server: LittleServer, port: int = 0) -> Iterator[LittleServer]:
    """Serves on a free port until the end of the ``with``."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        # Else the small writes of a stream wait for each other's acknowledgement.
        disable_nagle_algorithm = True

        def handle(self) -> None:
            with suppress(ConnectionResetError):  # a client that hangs up
                super().handle()

        def answer(self) -> None:
            parts = urlsplit(self.path)
            body = self._body()
            asked = Asked(self.command, parts.path, parse_qs(parts.query), self.headers, body)
            answer = server.reply(asked)
            self.send_response(answer.status)
            for name, value in answer.headers.items():
                self.send_header(name, value)
            if answer.status == 204:  # has no body, by RFC 9110 section 15.3.5, not even an empty one
                self.end_headers()
                return
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            try:
                for piece in answer.pieces:
                    self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
                    self.wfile.flush()
                if answer.breaks:
                    self.close_connection = True
                else:
                    self.wfile.write(b"0\r\n\r\n")
            except (BrokenPipeError, ConnectionResetError):
                self.close_connection = True

        def _body(self) -> bytes:
            if (length := self.headers.get("content-length")) is not None:
                return self.rfile.read(int(length))
            body = b""
            if self.headers.get("transfer-encoding") == "chunked":
                while size := int(self.rfile.readline(), 16):
                    body += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
            return body

        do_GET = do_POST = do_DELETE = answer

        def log_message(self, *args: Any) -> None:
            """Tests print nothing."""

    httpd = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    httpd.daemon_threads = True
    server.url = f"http://127.0.0.1:{httpd.server_address[1]}"
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        httpd.shutdown()
        thread.join()
        httpd.server_close()
