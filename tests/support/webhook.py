"""A receiver of notifications: takes them, fails first, or hangs."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.support import LIMIT_S


class Receiver:
    """What was posted: `taken` are those that it answered with 200, `tried` all. Answers `failing` with 503 first."""

    def __init__(self, url: str, failing: int) -> None:
        self.url, self.failing = url, failing
        self.tried: list[tuple[bytes, dict[str, str]]] = []
        self.taken: list[dict[str, Any]] = []
        self.hang: threading.Event | None = None
        self._lock = threading.Lock()

    def note(self, body: bytes, headers: dict[str, str]) -> int:
        if self.hang is not None:
            self.hang.wait(LIMIT_S)
        with self._lock:
            self.tried.append((body, headers))
            self.failing -= 1
            if self.failing >= 0:
                return 503
            self.taken.append(json.loads(body))
            return 200

    def events(self, kind: str) -> list[dict[str, Any]]:
        """Of all posts of that kind."""
        return [event for post in list(self.taken) if post["kind"] == kind for event in post["events"]]


@contextmanager
def receiver(failing: int = 0) -> Iterator[Receiver]:
    """One on a free port of this machine."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(running.note(body, {name.lower(): value for name, value in self.headers.items()}))
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    running = Receiver(f"http://127.0.0.1:{server.server_port}/hooks/s3cret?token=s3cret", failing)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield running
    finally:
        if running.hang is not None:
            running.hang.set()
        server.shutdown()
        server.server_close()
        thread.join(LIMIT_S)
