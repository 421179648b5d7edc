"""A server in front of a storage that answers some requests otherwise: as one that cannot, or is unwell, would."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import NamedTuple
from urllib.parse import urlsplit


class Asked(NamedTuple):
    """A request, as far as its answer may depend on it."""

    method: str
    path: str
    is_conditional: bool
    """Whether it is to be done only if there is nothing yet."""


class Refusal(NamedTuple):
    """An answer instead of the storage's; without a status, the connection is cut."""

    status: int | None
    code: str = ""


Decide = Callable[[Asked], Refusal | None]


class _Server(ThreadingHTTPServer):
    def __init__(self, storage: str, decide: Decide) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.storage = urlsplit(storage).netloc
        self.decide = decide


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def __getattr__(self, name: str) -> Callable[[], None]:
        if name.startswith("do_"):  # of whichever method
            return self._handle
        raise AttributeError(name)

    def log_message(self, *_: object) -> None: ...

    def _handle(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        refusal = self.server.decide(Asked(self.command, self.path, self.headers.get("If-None-Match") == "*"))
        if refusal is None:
            self._pass_on(body)
        elif refusal.status is None:
            self.close_connection = True
        else:
            said = f"<?xml version='1.0'?><Error><Code>{refusal.code}</Code></Error>".encode()
            self._answer(refusal.status, {}, said)

    def _pass_on(self, body: bytes) -> None:
        connection = HTTPConnection(self.server.storage, timeout=30)
        connection.request(self.command, self.path, body, dict(self.headers))
        answer = connection.getresponse()
        self._answer(answer.status, dict(answer.getheaders()), answer.read())
        connection.close()

    def _answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response_only(status)
        length = headers.pop("Content-Length", str(len(body)))
        for name, value in headers.items():
            if name.lower() not in {"connection", "transfer-encoding", "content-length"}:
                self.send_header(name, value)
        self.send_header("Content-Length", length)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


@contextmanager
def in_front_of(storage: str, decide: Decide) -> Iterator[str]:
    """Serve on loopback, passing on to a storage what is not decided otherwise; yield the URL."""
    server = _Server(storage, decide)
    thread = Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
