"""An HTTP proxy in front of a real node, where faults are provoked on the wire."""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import socket
import socketserver
import ssl
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

from tests.support import LIMIT_S
from tests.support.node import OPENSEARCH, TESTED, free_port

PRODUCT = (
    {"Content-Type": "application/json; charset=UTF-8"}
    if TESTED is OPENSEARCH
    else {
        "X-Elastic-Product": "Elasticsearch",
        "Content-Type": "application/vnd.elasticsearch+json;compatible-with=8",
    }
)


@dataclass
class Request:
    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def is_bulk(self) -> bool:
        return self.path.partition("?")[0].endswith("/_bulk")


@dataclass
class Reply:
    status: int
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""


_RESET = Reply(0)

Action = Callable[["FaultProxy", Request], Reply | None]
"""Returns the answer for the client; None closes the connection without one."""


def bulk(request: Request) -> bool:
    return request.is_bulk


def anything(_request: Request) -> bool:
    return True


def reply(status: int, body: bytes = b"{}", headers: dict[str, str] | None = None) -> Action:
    """Answer in the node's stead; the node sees nothing."""
    return lambda _proxy, _request: Reply(status, PRODUCT | (headers or {}), body)


def refuse(_proxy: FaultProxy, _request: Request) -> Reply | None:
    """Close the connection; the node sees nothing."""
    return None


def reset(_proxy: FaultProxy, _request: Request) -> Reply | None:
    """Break the connection with an RST; the node sees nothing."""
    return _RESET


def swallow(proxy: FaultProxy, request: Request) -> Reply | None:
    """The node applies it; the connection closes without an answer."""
    proxy.forward(request)
    return None


def hang(proxy: FaultProxy, _request: Request) -> Reply | None:
    """No answer until `proxy.release()`; the node sees nothing."""
    proxy.released.wait(LIMIT_S)
    return None


def hold(proxy: FaultProxy, request: Request) -> Reply | None:
    """The node sees it, and the client its answer, only after `proxy.release()`."""
    return proxy.forward(request) if proxy.released.wait(LIMIT_S) else None


def hold_answer(proxy: FaultProxy, request: Request) -> Reply | None:
    """The node applies it; the answer comes after `proxy.release()`."""
    answer = proxy.forward(request)
    proxy.held.set()
    proxy.released.wait(LIMIT_S)
    return answer


def rewrite(change: Callable[[Any], Any]) -> Action:
    """The node applies it; its answer, parsed, is changed."""

    def action(proxy: FaultProxy, request: Request) -> Reply:
        answer = proxy.forward(request)
        return Reply(answer.status, answer.headers, json.dumps(change(json.loads(answer.body))).encode())

    return action


def cut(length: int) -> Action:
    """The node applies it; only the first bytes of its answer arrive."""

    def action(proxy: FaultProxy, request: Request) -> Reply:
        answer = proxy.forward(request)
        return Reply(answer.status, {**answer.headers, "Content-Length": str(len(answer.body))}, answer.body[:length])

    return action


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def __init__(self, address: tuple[str, int], handler: type[_Handler], tls: ssl.SSLContext | None) -> None:
        self.connections: set[socket.socket] = set()
        self._tls = tls
        super().__init__(address, handler)

    def get_request(self) -> tuple[socket.socket, Any]:
        connection, address = super().get_request()
        if self._tls is not None:  # the handshake comes with the first read, in the connection's own thread
            connection = self._tls.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
        self.connections.add(connection)  # before its thread starts: down() must see every accepted connection
        return connection, address

    def shutdown_request(self, request: Any) -> None:
        self.connections.discard(request)
        if request.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER):
            self.close_request(request)  # a shutdown would send a FIN before the RST
        else:
            super().shutdown_request(request)


class FaultProxy:
    """Forwards to `upstream` unless a rule matches; the newest rule is asked first."""

    def __init__(self, upstream: str, tls: ssl.SSLContext | None = None) -> None:
        address = urlsplit(upstream)
        self._tls = tls
        self._upstream = (address.hostname or "", address.port or 80)
        self._rules: list[tuple[Callable[[Request], bool], Action, itertools.repeat[int] | list[int]]] = []
        self._lock = threading.Condition()
        self._under_way, self._closed = 0, False
        self.requests: list[Request] = []
        self.released, self.held = threading.Event(), threading.Event()
        self._port = free_port()
        self.up()

    @property
    def url(self) -> str:
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self._port}"

    def on(self, matches: Callable[[Request], bool], action: Action, times: int | None = None) -> None:
        """Do `action` for requests that match, `times` times or always. An earlier release() does not count."""
        with self._lock:
            if self.released.is_set():  # what the old event held is on its way
                self.released, self.held = threading.Event(), threading.Event()
            self._rules.insert(0, (matches, action, itertools.repeat(1) if times is None else [1] * times))

    def clear(self) -> None:
        """Forget the rules and the requests seen, let go what hangs."""
        with self._lock:
            self._rules.clear()
            self.requests.clear()
        self.release()

    def release(self) -> None:
        self.released.set()

    def down(self) -> None:
        """Refuse connections, and cut the open ones."""
        self._server.shutdown()
        self._server.server_close()
        for connection in list(self._server.connections):
            with contextlib.suppress(OSError):
                # close() alone waits for the handler's files; of SSLSocket's own shutdown() its reader knows nothing
                socket.socket.shutdown(connection, socket.SHUT_RDWR)

    def up(self) -> None:
        """Listen (again)."""
        proxy = self

        class Handler(_Handler):
            owner = proxy

        self._server = _Server(("127.0.0.1", self._port), Handler, self._tls)
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        """For good. No request reaches the node after this, where it would meet the next test."""
        with self._lock:
            self._closed = True
        self.release()
        self.down()
        with self._lock:
            assert self._lock.wait_for(lambda: not self._under_way, LIMIT_S), "a request does not come to its end"

    def wait_for(self, matches: Callable[[Request], bool], timeout: float = LIMIT_S) -> Request:
        """Block until a request that matches has been seen."""
        with self._lock:
            assert self._lock.wait_for(lambda: any(map(matches, self.requests)), timeout), "no such request was seen"
            return next(request for request in self.requests if matches(request))

    def wait_held(self, timeout: float = LIMIT_S) -> None:
        """Block until `hold_answer` has the node's answer in hand: the node has applied the request."""
        assert self.held.wait(timeout), "no answer is held"

    def forward(self, request: Request) -> Reply:
        connection = http.client.HTTPConnection(*self._upstream, timeout=LIMIT_S)
        try:
            headers = {k: v for k, v in request.headers.items() if k.lower() not in ("host", "accept-encoding")}
            connection.request(request.method, request.path, request.body or None, headers)
            answer = connection.getresponse()
            kept = {k: v for k, v in answer.getheaders() if k.lower() in ("content-type", "x-elastic-product")}
            return Reply(answer.status, kept, answer.read())
        finally:
            connection.close()

    def handle(self, request: Request) -> Reply | None:
        with self._lock:
            if self._closed:
                return None
            self._under_way += 1
            self.requests.append(request)
            self._lock.notify_all()
            action = self._matching(request)
        try:
            return action(self, request) if action else self.forward(request)
        except (OSError, http.client.HTTPException):
            return None  # the node is away, or what answers is none
        finally:
            with self._lock:
                self._under_way -= 1
                self._lock.notify_all()

    def _matching(self, request: Request) -> Action | None:
        for matches, action, left in self._rules:
            if left and matches(request):
                if isinstance(left, list):
                    left.pop()
                return action
        return None


class _Handler(BaseHTTPRequestHandler):
    owner: FaultProxy
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def finish(self) -> None:
        try:
            super().finish()
        except (OSError, ValueError):
            return

    def handle(self) -> None:
        try:
            super().handle()
        except (OSError, ValueError):
            return  # the client went away, or the proxy was taken down

    def _any(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length)
        if len(body) < length:  # its client was killed: the node would wait for the rest
            self.close_connection = True
            return
        answer = self.owner.handle(Request(self.command, self.path, dict(self.headers), body))
        if answer is None:
            self.close_connection = True
            return
        if answer is _RESET:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True
            return
        self.send_response(answer.status)
        for name, value in {"Content-Length": str(len(answer.body)), **answer.headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body)
        if int(answer.headers.get("Content-Length", len(answer.body))) != len(answer.body):
            self.close_connection = True

    do_GET = do_POST = do_PUT = do_DELETE = do_HEAD = _any

    def log_message(self, *_args: object) -> None:
        return


socketserver.TCPServer.allow_reuse_address = True
