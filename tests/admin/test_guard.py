"""What every request to the admin server must pass, and what no answer may tell."""

from __future__ import annotations

import ast
import asyncio
import hashlib
import hmac
import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from loguru import logger
from sqlalchemy import Engine

import outbox.admin
from outbox.admin import guard, sessions
from outbox.destinations.elasticsearch.destination import ElasticsearchDestination
from outbox.destinations.embedded.destination import EmbeddedDestination
from tests.admin.world import PAUSE
from tests.support.outbox import Outbox
from tests.support.relays import until
from tests.support.serving import BEARER, TOKEN, TestClient, client_of, every_route

ROOMS = Path(outbox.admin.__file__).parent
OPEN = {"/health/live", "/health/ready", "/login"}


@pytest.fixture
def guarded(engine: Engine, search_db: EmbeddedDestination) -> Iterator[TestClient]:
    """A client of a server that asks for a token."""
    with client_of(engine, search_db, admin_token=TOKEN) as client:
        yield client


@pytest.fixture
def open_(engine: Engine, search_db: EmbeddedDestination) -> Iterator[TestClient]:
    """A client of a server that asks for none."""
    with client_of(engine, search_db) as client:
        yield client


def paused(outbox: Outbox) -> bool:
    return outbox.store().control().paused_at is not None


def pause(client: TestClient, **headers: str | bytes) -> int:
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    return client.post(PAUSE, json={"reason": "a test"}, headers=given).status_code  # type: ignore[arg-type]


# -- the token --------------------------------------------------------------------------------------------------------


def test_route_that_acts_or_answers_without_the_token(guarded: TestClient, outbox: Outbox) -> None:
    routes = every_route(guarded)
    assert {"/", "/metrics", "/api/openapi.json", PAUSE, "/pause", "/api/v1/admin/events/1"} <= {p for _, p in routes}
    assert len(routes) > 30
    for method, path in routes:
        if path in OPEN or path.startswith("/static"):
            continue
        for asked in {method, "GET", "POST", "HEAD", "OPTIONS", "PUT", "DELETE", "PATCH", "BREW"}:
            for spelt in (path, f"{path}/", f"{path}?x=/health/live", path.replace("a", "%61", 1)):
                answer = guarded.request(asked, spelt, headers={"Accept": "*/*"})
                assert answer.status_code == 401, (asked, spelt)
                assert answer.headers["www-authenticate"] == "Bearer"
    assert not paused(outbox)


def test_what_is_open_says_nothing_but_yes_or_no(guarded: TestClient) -> None:
    assert guarded.get("/health/live").json() == {"status": "ok"}
    assert guarded.get("/health/ready").json() == {"status": "ok"}
    assert guarded.get("/static/style.css").status_code == 200
    assert guarded.get("/login").status_code == 200


WRONG = [
    b"",
    b"Bearer",
    b"Bearer ",
    b"Bearer wrong",
    b"Bearer " + TOKEN[:-1].encode(),
    b"Bearer " + TOKEN.encode() + b"x",
    b"Bearer " + TOKEN.upper().encode(),
    b"Bearer \xff\xfe\xb2" + TOKEN.encode(),
    b"Bearer " + "kört".encode(),
    b"Basic " + TOKEN.encode(),
    b"Token " + TOKEN.encode(),
    TOKEN.encode(),
]


def test_wrong_token(guarded: TestClient, outbox: Outbox) -> None:
    for given in WRONG:
        assert pause(guarded, Authorization=given) == 401, given
    assert not paused(outbox)


def test_scheme_in_whatever_case(guarded: TestClient) -> None:
    for scheme in ("Bearer", "bearer", "BEARER", "Bearer "):
        assert pause(guarded, Authorization=f"{scheme} {TOKEN}") == 200, scheme


def test_token_elsewhere_than_in_the_header_counts_for_nothing(guarded: TestClient, outbox: Outbox) -> None:
    body = {"reason": "a test"}
    for address in (f"{PAUSE}?token={TOKEN}", f"{PAUSE}?access_token={TOKEN}"):
        assert guarded.post(address, json=body).status_code == 401
    assert guarded.post(PAUSE, json=body, headers={"X-Token": TOKEN, "X-Api-Key": TOKEN}).status_code == 401
    assert not paused(outbox)


def test_token_that_is_not_ascii(engine: Engine, search_db: EmbeddedDestination) -> None:
    token = "Schlüssel-zum-Überblick"
    with client_of(engine, search_db, admin_token=token) as client:
        assert pause(client, Authorization=b"Bearer " + token.encode()) == 200
        assert client.post("/login", data={"token": token}, follow_redirects=False).status_code == 303


def test_token_with_the_line_end_of_its_file(engine: Engine, search_db: EmbeddedDestination) -> None:
    with client_of(engine, search_db, admin_token=f"{TOKEN}\n") as client:
        assert pause(client, **BEARER) == 200


def test_token_compared_in_a_time_that_tells_of_it(guarded: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[bytes, bytes]] = []
    real = hmac.compare_digest

    def compare(given: bytes, token: bytes) -> bool:
        compared.append((given, token))
        return real(given, token)

    monkeypatch.setattr(sessions.hmac, "compare_digest", compare)
    pause(guarded, Authorization="Bearer wrong")
    assert compared.pop() == (b"wrong", TOKEN.encode())
    guarded.post("/login", data={"token": "wrong"})
    assert compared.pop() == (b"wrong", TOKEN.encode())
    pause(guarded, Cookie=f"{sessions.COOKIE}=9999999999.wrong")
    assert compared.pop()[0] == b"wrong"
    for path in ROOMS.glob("*.py"):  # and nowhere is one compared in another way
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Compare) and not all(isinstance(each, ast.Is | ast.IsNot) for each in node.ops):
                assert not re.search(r"token|proof|secret", ast.unparse(node)), (path.name, ast.unparse(node))


# -- sessions ---------------------------------------------------------------------------------------------------------


def test_login_gives_a_session_that_scripts_and_other_sites_do_not_get(guarded: TestClient) -> None:
    answer = guarded.post("/login", data={"token": TOKEN, "next": "/events"}, follow_redirects=False)
    assert (answer.status_code, answer.headers["location"]) == (303, "/events")
    cookie = answer.headers["set-cookie"].lower()
    assert "httponly" in cookie and "samesite=strict" in cookie and TOKEN not in answer.headers["set-cookie"]
    assert "secure" not in cookie  # over plain http a browser would not send it back
    assert guarded.get("/api/v1/admin/status").status_code == 200
    guarded.post("/logout", headers={"Origin": "http://127.0.0.1:8321"})
    assert guarded.get("/api/v1/admin/status").status_code == 401


def test_login_takes_a_token_that_was_pasted_with_the_end_of_its_line(guarded: TestClient) -> None:
    assert guarded.post("/login", data={"token": f" {TOKEN}\n"}, follow_redirects=False).status_code == 303


def forged() -> dict[str, str]:
    good = sessions.session(TOKEN)
    ends, _, proof = good.partition(".")
    return {
        "later": f"{int(ends) + 1}.{proof}",
        "over": sessions.session(TOKEN, now=time.time() - sessions.SESSION_S - 1),
        "of another token": sessions.session("another token that is long"),
        "without a proof": f"{ends}.",
        "without a key": f"{ends}.{hashlib.sha256(ends.encode()).hexdigest()}",
        "signed with nothing": f"{ends}.{hmac.new(b'', ends.encode(), hashlib.sha256).hexdigest()}",
        "the token itself": TOKEN,
        "no number": f"soon.{proof}",
        "a number without end": "9" * 5_000 + "." + proof,
        "no ascii": "\xb2\xff." + proof,
        "empty": "",
    }


def test_session_that_was_not_given_by_this_server_or_is_over(guarded: TestClient) -> None:
    for kind, session in forged().items():
        cookie = f"{sessions.COOKIE}={session}".encode("latin-1")
        answer = guarded.get("/api/v1/admin/status", headers={"Cookie": cookie})  # type: ignore[dict-item]
        assert answer.status_code == 401, kind
    good = {"Cookie": f"{sessions.COOKIE}={sessions.session(TOKEN)}"}
    assert guarded.get("/api/v1/admin/status", headers=good).status_code == 200


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, 403),
        ({"Origin": "http://127.0.0.1:8321"}, 200),
        ({"Sec-Fetch-Site": "same-origin"}, 200),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Origin": "http://127.0.0.1"}, 403),
    ],
    ids=repr,
)
def test_session_alone_lets_no_other_page_act(guarded: TestClient, headers: dict[str, str], expected: int) -> None:
    assert pause(guarded, Cookie=f"{sessions.COOKIE}={sessions.session(TOKEN)}", **headers) == expected


# -- who sends it -----------------------------------------------------------------------------------------------------

OTHER_SITES = [
    {"Origin": "http://evil.example"},
    {"Origin": "null"},
    {"Origin": ""},
    {"Origin": "http://127.0.0.1:9999"},
    {"Origin": "http://127.0.0.1:8321.evil.example"},
    {"Origin": "http://127.0.0.1:8321@evil.example"},
    {"Origin": "file://"},
    {"Origin": "http://["},
    {"Origin": "127.0.0.1:8321"},
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site"},
    {"Sec-Fetch-Site": "anything"},
    {"Origin": "http://127.0.0.1:8321", "Sec-Fetch-Site": "cross-site"},
]


@pytest.mark.parametrize("path", [PAUSE, "/pause", "/login", "/dead/discard"])
def test_post_of_a_page_of_another_site(guarded: TestClient, open_: TestClient, outbox: Outbox, path: str) -> None:
    for headers in OTHER_SITES:
        for client in (guarded, open_):
            answer = client.post(path, data={"reason": "a test", "all": "yes"}, headers={**headers, **BEARER})
            assert answer.status_code == 403, headers
            assert answer.headers["content-type"] == "application/problem+json"
    assert not paused(outbox)


NOT_HERE = [
    "evil.example",
    "evil.example:8321",
    "127.0.0.1.evil.example",
    "localhost.evil.example",
    "evil.example#localhost",
    "0.0.0.0",
    "10.0.0.7:8321",
    "[::ffff:10.0.0.7]",
    "[",
    "[::1",
    "[localhost]",
    "",
]


def test_name_that_was_made_to_lead_here(open_: TestClient, outbox: Outbox) -> None:
    for host in NOT_HERE:
        for path in ("/", "/metrics", "/health/live", "/api/v1/admin/status"):
            assert open_.get(path, headers={"Host": host}).status_code == 403, host
        assert pause(open_, Host=host) == 403, host
    assert not paused(outbox)


def test_names_of_this_machine(open_: TestClient) -> None:
    for host in ("localhost", "LOCALHOST:8321", "127.0.0.1", "127.0.0.2:1", "[::1]", "[::1]:8321"):
        assert pause(open_, Host=host, Origin=f"http://{host}") == 200, host


def test_with_a_token_any_name_leads_here(guarded: TestClient) -> None:
    assert pause(guarded, Host="relay.internal:8321", **BEARER) == 200


# -- how much ---------------------------------------------------------------------------------------------------------


def test_address_headers_or_body_that_are_too_large(guarded: TestClient, outbox: Outbox) -> None:
    assert guarded.get("/events?index=" + "x" * guard.MOST_PATH_BYTES, headers=BEARER).status_code == 414
    assert guarded.get("/" + "x" * guard.MOST_PATH_BYTES).status_code == 414  # before the token is looked at
    assert guarded.get("/", headers={"X-Large": "x" * 17_000, **BEARER}).status_code == 431
    large = json.dumps({"reason": "x" * guard.MOST_BODY_BYTES})
    assert guarded.post(PAUSE, content=large, headers=BEARER).status_code == 413

    def chunked() -> Iterator[bytes]:
        for _ in range(100):
            yield b" " * 1_000

    assert guarded.post(PAUSE, content=chunked(), headers=BEARER).status_code == 413
    assert not paused(outbox)
    exactly = json.dumps({"reason": "x"})
    padded = exactly + " " * (guard.MOST_BODY_BYTES - len(exactly))
    as_json = {"Content-Type": "application/json", **BEARER}
    assert guarded.post(PAUSE, content=padded, headers=as_json).status_code == 200


def test_half_a_body_is_not_taken_for_the_whole(guarded: TestClient, outbox: Outbox) -> None:
    """The action needs no body: it must not happen when the connection breaks before the announced one has come."""
    assert pause(guarded, **BEARER) == 200
    heard: Iterator[dict[str, Any]] = iter(
        [{"type": "http.request", "body": b"{", "more_body": True}, {"type": "http.disconnect"}]
    )
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        return next(heard)

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/api/v1/admin/resume",
        "query_string": b"",
        "headers": [(b"host", b"127.0.0.1"), (b"authorization", f"Bearer {TOKEN}".encode())],
    }
    app: Any = guarded.app
    asyncio.run(app(scope, receive, send))
    assert (sent, paused(outbox)) == ([], True)


# -- what is asked for ------------------------------------------------------------------------------------------------

ELSEWHERE = [
    "https://evil.example",
    "//evil.example",
    "///evil.example",
    "/\\evil.example",
    "\\\\evil.example",
    "/\t/evil.example",
    "/\n//evil.example",
    "\x00//evil.example",
    "javascript:alert(1)",
    "//[",
    "",
    " //evil.example",
    "evil.example",
]


def test_login_that_leads_to_another_site(guarded: TestClient, open_: TestClient) -> None:
    for address in ELSEWHERE:
        given = {"token": TOKEN, "next": address}
        for client in (guarded, open_):
            answer = client.post("/login", data=given, follow_redirects=False)
            assert (answer.status_code, answer.headers["location"]) == (303, "/"), address
        shown = guarded.get("/login", params={"next": address})
        assert shown.status_code == 200, address
        assert re.findall(r'name="next" value="([^"]*)"', shown.text) == ["/"], address


def test_login_leads_back_to_where_somebody_wanted_to_go(guarded: TestClient) -> None:
    wanted = "/events?state=dead&index=a%26b"
    asked = guarded.get(wanted, headers={"Accept": "text/html"}, follow_redirects=False)
    assert asked.status_code == 303
    login = httpx.URL(asked.headers["location"])
    assert login.path == "/login"
    answer = guarded.post("/login", data={"token": TOKEN, "next": login.params["next"]}, follow_redirects=False)
    assert answer.headers["location"] == wanted


@pytest.mark.parametrize("name", ["X-HTTP-Method-Override", "X-HTTP-Method", "X-Method-Override"])
def test_method_that_a_header_or_parameter_asks_for(open_: TestClient, outbox: Outbox, name: str) -> None:
    assert open_.get(PAUSE, headers={name: "POST"}).status_code == 405
    assert open_.get(f"{PAUSE}?_method=POST&reason=x").status_code == 405
    assert open_.get("/pause?reason=x", headers={name: "POST"}).status_code == 405
    assert not paused(outbox)


@pytest.mark.parametrize("path", ["/", "/health/live", "/metrics", "/api/v1/admin/status", "/static/style.css"])
def test_head_is_get_without_its_body(open_: TestClient, path: str) -> None:
    answer = open_.head(path)
    assert (answer.status_code, answer.content) == (200, b"")
    assert open_.get(path).headers["content-type"] == answer.headers["content-type"]


def test_no_other_site_is_allowed_to_read(open_: TestClient) -> None:
    asked = {"Origin": "http://evil.example", "Access-Control-Request-Method": "POST"}
    for path in ("/", PAUSE, "/metrics"):
        for answer in (open_.options(path, headers=asked), open_.get(path, headers=asked)):
            assert not [name for name in answer.headers if name.startswith("access-control-")]
            assert "script-src 'self'" in answer.headers["content-security-policy"]
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert answer.headers["cache-control"] == "no-store"


# -- what no answer tells ---------------------------------------------------------------------------------------------


def test_secret_on_a_page_in_an_answer_or_in_the_log(engine: Engine, outbox: Outbox) -> None:
    secrets = {
        "admin_token": "SECRET-admin-token",
        "elasticsearch_password": "SECRET-password",
        "elasticsearch_api_key": "SECRET-api-key",
    }
    url = "http://elastic:SECRET-in-url@127.0.0.1:9"  # nobody listens there
    away = ElasticsearchDestination([url], request_timeout=1)
    row = outbox.index("contacts", "c1", {"name": "Ada"})
    outbox.raw("UPDATE outbox_events SET state = 'dead', error_type = 'x', error = 'y' WHERE id = :row", row=row)
    lines: list[str] = []
    logger.add(lines.append, level="DEBUG", backtrace=True)
    bearer = {"Authorization": "Bearer SECRET-admin-token"}
    seen: dict[str, str] = {}
    with client_of(engine, away, elasticsearch_url=url, **secrets) as client:
        until(lambda: client.get("/health", headers=bearer).json()["destination"], "the destination was asked")
        waiting = {path for method, path in every_route(client) if method == "GET"}
        while waiting:
            path = waiting.pop()
            answer = client.get(path, headers={**bearer, "Accept": "text/html"})
            seen[path] = answer.text + str(answer.headers)
            waiting |= {found for found in re.findall(r'(?:href|action)="(/[^"#]*)"', answer.text) if found not in seen}
            assert len(seen) < 200
        for method, path in every_route(client):
            if method == "POST":
                for body in (b"{", b"{}", b'{"reason": 1}', b"token=wrong"):
                    answer = client.post(path, content=body, headers=bearer)
                    seen[f"{path} {body!r}"] = answer.text + str(answer.headers)
    away.close()
    assert {"/", "/metrics", "/api/openapi.json", "/health", f"/events/{row}"} <= set(seen)
    for where, what in {**seen, "the log": "".join(lines)}.items():
        assert "SECRET" not in what, where
    assert lines
