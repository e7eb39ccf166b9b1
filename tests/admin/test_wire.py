"""A real process, byte by byte: what is hardly a request, comes too slowly or leads out of what is open."""

from __future__ import annotations

import re
import sqlite3
import ssl
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from http.client import HTTPConnection
from pathlib import Path

import httpx
import pytest
from sqlalchemy import Engine

from outbox.admin import protocol
from tests.admin.world import PAUSE, serving
from tests.support import LIMIT_S
from tests.support.pages import ROOT
from tests.support.relays import until
from tests.support.serving import TOKEN, Process, heard, status
from tests.support.tls import needs_openssl, self_signed


@pytest.fixture
def hasty(tmp_path: Path) -> Iterator[Process]:
    """One for which a request has to be whole after a second."""
    running = serving(tmp_path, "from outbox.admin import protocol; protocol.REQUEST_WITHIN_S = 1.0; ")
    yield running
    assert running.end() == 0


def request(line: str, *headers: str, body: bytes = b"") -> bytes:
    return "\r\n".join([line, *headers, "", ""]).encode("latin-1") + body


HOST, AUTH, CLOSE = "Host: 127.0.0.1", f"Authorization: Bearer {TOKEN}", "Connection: close"
JSON = "Content-Type: application/json"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "expected"),
    [
        (request("GET /health/live HTTP/1.1", HOST, CLOSE), {200}),
        (request("GET /health/live HTTP/1.0"), {200}),
        (request("GET / HTTP/1.0", AUTH), {200}),
        (request("GET / HTTP/1.1", HOST, CLOSE), {401}),
        (request("GET http://evil.example/health/live HTTP/1.1", HOST, CLOSE), {400, 401, 404}),
        (request("GET /health/live HTTP/1.1", CLOSE), {400}),  # no host
        (request("GET /health/live HTTP/1.1", HOST, "Host: evil.example", CLOSE), {400}),
        (request("GET /health/live HTTP/one", HOST), {400, 505}),
        (request("GET  /health/live HTTP/1.1", HOST), {400}),
        (request("GET /health\x01 HTTP/1.1", HOST), {400}),
        (request("GET /\xff HTTP/1.1", HOST), {400}),
        (request("GET /%00 HTTP/1.1", HOST, CLOSE), {400}),
        (request("GET /%ff%fe HTTP/1.1", HOST, AUTH, CLOSE), {404}),
        (request("GET / HTTP/1.1", HOST, " folded", CLOSE), {400, 401}),
        (request("GET / HTTP/1.1", HOST, "Bad Name: x"), {400}),
        (request("GET / HTTP/1.1", HOST, "Name : x"), {400}),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc", {400}),  # TLS is spoken where it is not
        (b"\r\n" * 3 + request("GET /health/live HTTP/1.1", HOST, CLOSE), {200, 400}),
        (request("GET /" + "x" * 100_000 + " HTTP/1.1", HOST), {400, 414}),
        (request("GET / HTTP/1.1", HOST, "X: " + "x" * 100_000), {400, 431}),
        (request("GET / HTTP/1.1", HOST, *[f"X-{n}: x" for n in range(20_000)]), {400, 431}),
        (request(f"POST {PAUSE} HTTP/1.1", HOST, AUTH, "Content-Length: -1", CLOSE), {400}),
        (request(f"POST {PAUSE} HTTP/1.1", HOST, AUTH, "Content-Length: \xb2", CLOSE), {400}),
        (request(f"POST {PAUSE} HTTP/1.1", HOST, AUTH, "Content-Length: 1, 2", CLOSE), {400}),
        (request(f"POST {PAUSE} HTTP/1.1", HOST, AUTH, "Content-Length: 99999999999999999999", CLOSE), {400, 413}),
        (request(f"POST {PAUSE} HTTP/1.1", HOST, AUTH, "Content-Length: 70000", CLOSE), {413}),
        (
            request(f"POST {PAUSE} HTTP/1.1", HOST, AUTH, "Transfer-Encoding: chunked", CLOSE, body=b"zz\r\n"),
            {400, 0},
        ),
        (
            request(f"POST {PAUSE} HTTP/1.1", HOST, AUTH, "Transfer-Encoding: gzip, chunked", CLOSE, body=b"0\r\n\r\n"),
            {400, 501},
        ),
        (request("GET / HTTP/1.1", HOST, AUTH, "Upgrade: websocket", "Connection: upgrade, close"), {200, 400}),
        (request("CONNECT evil.example:443 HTTP/1.1", HOST, CLOSE), {400, 401, 404, 405}),
        (request("TRACE / HTTP/1.1", HOST, AUTH, CLOSE), {405}),
    ],
    ids=lambda value: repr(value[:70]) if isinstance(value, bytes) else "",
)
def test_request_that_is_hardly_one(served: Process, what: bytes, expected: set[int]) -> None:
    answer = served.say(what)
    assert status(answer) in expected
    assert b"Traceback" not in answer
    assert status(served.say(request("GET /health/live HTTP/1.1", HOST, CLOSE))) == 200


@pytest.mark.parametrize(
    "path",
    [
        "/static/../guard.py",
        "/static/%2e%2e/guard.py",
        "/static/..%2fguard.py",
        "/static/..%5cguard.py",
        "/static/....//guard.py",
        "/static/%2e%2e%2f%2e%2e%2f%2e%2e%2f%2e%2e%2f%2e%2e%2f%2e%2e%2f%2e%2e%2f%2e%2e%2fetc%2fpasswd",
        "/static//etc/passwd",
        "/static/%252e%252e/guard.py",
        "/static/%00",
        "/static/style.css%00.png",
        "/static/" + "%c0%ae" * 2 + "/guard.py",
        "/static/../api/v1/admin/status",
        "/static/%2e%2e/metrics",
        "/health/live/../../api/v1/admin/status",
        "/login/../metrics",
        "/static/" + "x" * 300,
        "/static/",
        "/static",
    ],
)
def test_path_that_leads_out_of_what_is_open(served: Process, path: str) -> None:
    answer = served.say(request(f"GET {path} HTTP/1.1", HOST, CLOSE))
    assert status(answer) in {400, 401, 404, 405}
    assert b"compare_digest" not in answer and b"root:" not in answer and b"outbox_rows" not in answer


@pytest.mark.slow
def test_body_that_never_ends(served: Process) -> None:
    head = request(f"POST {PAUSE} HTTP/1.1", HOST, AUTH, "Transfer-Encoding: chunked")
    chunk = b"4000\r\n" + b" " * 0x4000 + b"\r\n"
    assert status(served.say(head, *[chunk] * 1_000)) == 413


@pytest.mark.slow
def test_request_or_body_that_comes_too_slowly(hasty: Process) -> None:
    half = [
        b"",
        b"GET /hea",
        request("GET /health/live HTTP/1.1", HOST)[:-2],
        request(f"POST {PAUSE} HTTP/1.1", HOST, AUTH, "Content-Length: 20", body=b'{"reason": "half'),
        request("POST /api/v1/admin/resume HTTP/1.1", HOST, AUTH, "Content-Length: 20"),
    ]
    connections = [hasty.connect() for _ in half]
    for connection, part in zip(connections, half, strict=True):
        connection.sendall(part)
    assert [status(heard(connection)) for connection in connections] == [0] * len(half)
    for connection in connections:
        connection.close()


@pytest.mark.slow
def test_act_that_outlasts_its_request_is_done_and_the_audit_says_so(tmp_path: Path) -> None:
    limits = "from outbox.admin import protocol; protocol.REQUEST_WITHIN_S = 1.0; protocol.ANSWER_WITHIN_S = 0.5; "
    running = serving(tmp_path, limits)
    with closing(sqlite3.connect(tmp_path / "app.db", isolation_level=None)) as database:
        database.execute("BEGIN IMMEDIATE")  # as many rows would, this keeps it from an end
        body = b'{"reason": "upgrade"}'
        paused = request(f"POST {PAUSE} HTTP/1.1", HOST, AUTH, JSON, f"Content-Length: {len(body)}", body=body)
        assert running.say(paused) == b""
        database.execute("ROLLBACK")
        noted = "SELECT action, error FROM outbox_audit WHERE ended_at IS NOT NULL"
        until(lambda: database.execute(noted).fetchall() == [("pause", None)], "the audit says that it is done")
    assert running.end() == 0
    told = (ROOT / "docs/reference/admin-api.md").read_text()
    assert f"after {protocol.REQUEST_WITHIN_S:g} + {protocol.ANSWER_WITHIN_S:g} s the connection is cut" in told


def test_requests_sent_without_waiting_are_answered_in_order(served: Process) -> None:
    several = [
        request("GET /health/live HTTP/1.1", HOST),
        request("GET /metrics HTTP/1.1", HOST),  # without the token
        request("GET /health/ready HTTP/1.1", HOST),
        request("GET /metrics HTTP/1.1", HOST, AUTH, CLOSE),
    ]
    answers = served.say(b"".join(several))
    assert re.findall(rb"HTTP/1\.1 (\d+) ", answers) == [b"200", b"401", b"200", b"200"]


def test_body_of_one_request_is_not_another_request(served: Process) -> None:
    smuggled = request("GET /metrics HTTP/1.1", HOST, AUTH)
    first = request(
        "POST /login HTTP/1.1", HOST, CLOSE, f"Content-Length: {len(smuggled)}", "Transfer-Encoding: chunked",
        body=b"0\r\n\r\n" + smuggled,
    )  # fmt: skip
    assert b"outbox_rows" not in served.say(first)


# -- TLS --------------------------------------------------------------------------------------------------------------


@needs_openssl
@pytest.mark.slow
def test_tls_with_a_session_that_never_goes_in_the_clear(engine: Engine, tmp_path: Path) -> None:
    _, certificate = self_signed(tmp_path)
    running = Process(
        tmp_path,
        "serve",
        OUTBOX_DATABASE_URL=str(engine.url),
        OUTBOX_DESTINATION="embedded",
        OUTBOX_EMBEDDED_PATH=str(tmp_path / "search.db"),
        OUTBOX_ADMIN_TOKEN=TOKEN,
        OUTBOX_ADMIN_TLS_CERTIFICATE=str(certificate),
        OUTBOX_ADMIN_TLS_KEY=str(tmp_path / "key.pem"),
    )
    assert running.url.startswith("https://")
    trusting = ssl.create_default_context(cafile=str(certificate))
    with httpx.Client(base_url=running.url, verify=trusting, timeout=LIMIT_S) as client:
        answer = client.post("/login", data={"token": TOKEN})
        assert "secure" in answer.headers["set-cookie"].lower()
        assert answer.headers["strict-transport-security"] == "max-age=31536000"
        assert client.get("/api/v1/admin/status").status_code == 200
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{running.url}/health/live", timeout=LIMIT_S)  # nobody knows the certificate
    assert status(running.say(request("GET /health/live HTTP/1.1", HOST, CLOSE))) in {0, 400}
    assert running.end() == 0


@pytest.mark.slow
def test_answers_after_the_first_of_a_connection_are_not_held_back(served: Process) -> None:
    """Nagle's algorithm and a client that acknowledges late would add 40 ms to each: ten times what it takes."""

    def seconds(of: Callable[[], object]) -> float:
        began = time.perf_counter()
        of()
        return time.perf_counter() - began

    def answered(by: HTTPConnection) -> None:
        by.request("GET", "/health/live")
        assert by.getresponse().read()

    def anew() -> None:
        with closing(HTTPConnection(where, timeout=LIMIT_S)) as connection:
            answered(connection)

    where = served.url.removeprefix("http://")
    with closing(HTTPConnection(where, timeout=LIMIT_S)) as kept:
        answered(kept)
        pairs = [(seconds(lambda: answered(kept)), seconds(anew)) for _ in range(9)]
    on_one, on_many = map(statistics.median, zip(*pairs, strict=True))
    assert on_one < 5 * on_many, (on_one, on_many)
