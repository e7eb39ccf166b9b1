"""The admin server as tests see it: in this process, or as one of its own that is spoken to byte by byte."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Engine

from outbox import EntityRegistry
from outbox.admin.app import create_app
from outbox.admin.readiness import RunningRelay
from outbox.destinations.base import Destination
from tests.support import LIMIT_S
from tests.support.outbox import settings
from tests.support.relays import COMMAND, until

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of the test client's own dependencies
    from starlette.testclient import TestClient as TestClient

TOKEN = "correct horse battery staple"
BEARER = {"Authorization": f"Bearer {TOKEN}"}


@contextmanager
def client_of(
    engine: Engine,
    destination: Destination,
    registry: EntityRegistry | None = None,
    relay: RunningRelay | None = None,
    **given: Any,
) -> Iterator[TestClient]:
    """A client of the whole application, which runs in this process. `given`: settings."""
    app = create_app(engine, settings(**given), destination, registry, relay)
    with TestClient(app, base_url="http://127.0.0.1:8321", raise_server_exceptions=False) as client:
        yield client


def every_route(client: TestClient) -> list[tuple[str, str]]:
    """(method, path) of all that the application answers, as it says itself."""
    app: Any = client.app
    return [
        (method, re.sub(r"\{[^}]*\}", "1", route.path))
        for route in _flat(app.app.routes)
        for method in getattr(route, "methods", None) or {"GET"}
    ]


def _flat(routes: Any) -> Iterator[Any]:
    for route in routes:
        if hasattr(route, "path"):
            yield route
        else:  # FastAPI keeps included routers as they are since 0.140
            yield from _flat(route.original_router.routes)


class Process:
    """`outbox-relay serve` (or `run --admin`) on a port that was free."""

    def __init__(self, directory: Path, *arguments: str, command: list[str] | None = None, **given: str) -> None:
        self._log = directory / "admin.log"
        with self._log.open("w") as log:
            self.process = subprocess.Popen(
                [*(command or COMMAND), *arguments],
                env={**os.environ, "OUTBOX_ADMIN_PORT": "0", **given},
                stderr=log,
                cwd=directory,
            )
        until(lambda: self._address() or self.process.poll() is not None, "the admin server says where it is")
        assert self.process.poll() is None, self.log
        found = self._address()
        assert found is not None
        self.url, self.port = found[1], int(found[2])

    def _address(self) -> re.Match[str] | None:
        return re.search(r"dashboard at (https?://\S+?:(\d+))/$", self.log, re.MULTILINE)

    @property
    def log(self) -> str:
        return self._log.read_text()

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=LIMIT_S)

    def say(self, *parts: bytes) -> bytes:
        """Send the parts, and read until the server closes or says nothing more."""
        with self.connect() as connection:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it has answered and closed already
                for part in parts:
                    connection.sendall(part)
            return heard(connection)

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Returns the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(LIMIT_S)


def heard(connection: socket.socket) -> bytes:
    """What the server says until it closes the connection."""
    parts = []
    with contextlib.suppress(ConnectionResetError):
        while part := connection.recv(65_536):
            parts.append(part)
    return b"".join(parts)


def status(answer: bytes) -> int:
    """The status of the first answer; 0: there was none."""
    found = re.match(rb"HTTP/1\.[01] (\d{3}) ", answer)
    return int(found[1]) if found else 0
