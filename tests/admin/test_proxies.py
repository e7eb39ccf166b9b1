"""The admin server behind a proxy: below a path of it, and with the headers of those proxies alone that were named."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from loguru import logger
from sqlalchemy import Engine

from outbox.admin.app import create_app
from outbox.destinations.embedded.destination import EmbeddedDestination
from outbox.errors import ConfigurationError
from tests.admin.world import PAUSE, kill
from tests.support.outbox import Outbox, settings
from tests.support.serving import BEARER, TOKEN, TestClient, client_of, every_route

ROOT = "/outbox"
PROXY, SOMEBODY = "10.1.2.3", "192.0.2.7"
HTML = {"Accept": "text/html"}
TELLS = {"X-Forwarded-For": "203.0.113.9", "X-Forwarded-Proto": "https", "X-Forwarded-Host": "ops.example"}


@pytest.fixture
def below(engine: Engine, search_db: EmbeddedDestination) -> Iterator[TestClient]:
    """A client of a server that a proxy has below a path."""
    with client_of(engine, search_db, admin_root_path=f"{ROOT}/") as client:
        yield client


Through = Callable[..., TestClient]


@pytest.fixture
def through(engine: Engine, search_db: EmbeddedDestination) -> Through:
    """Clients whose requests come from an address."""

    def client(address: str, **given: Any) -> TestClient:
        given = {"admin_token": TOKEN, "admin_proxies": ["10.0.0.0/8", "2001:db8::1"]} | given
        app = create_app(engine, settings(**given), search_db, None)
        return TestClient(app, base_url="http://127.0.0.1:8321", client=(address, 4711), follow_redirects=False)

    return client


@contextmanager
def lines() -> Iterator[list[str]]:
    found: list[str] = []
    number = logger.add(found.append, format="{message}", level="INFO")
    yield found
    logger.remove(number)


def addresses(page: str) -> set[str]:
    return set(re.findall(r' (?:href|src|action|formaction)="([^"#][^"]*)"', page))


# -- below a path -----------------------------------------------------------------------------------------------------


def test_every_address_of_every_page_leads_through_the_proxy_which_keeps_the_path_or_not(
    below: TestClient, outbox: Outbox
) -> None:
    row = outbox.index("contacts", "c1", {"name": "Ada"}, tenant_id="acme")
    kill(outbox, row)
    waiting = [path for method, path in every_route(below) if method == "GET" and "/api/v1/" not in path]
    waiting += [f"/events/{row}", "/events?state=dead&tenant=acme", "/document?index=contacts&id=c1", "/no/such/page"]
    seen = set[str]()
    while waiting:
        seen.add(path := waiting.pop())
        kept, left_out = (below.get(f"{each}{path}", headers=HTML, follow_redirects=False) for each in (ROOT, ""))
        assert kept.status_code == left_out.status_code, path
        if not kept.headers.get("content-type", "").startswith("text/html"):
            continue
        found = addresses(kept.text)
        assert found == addresses(left_out.text), path
        assert [each for each in found if each != ROOT and not each.startswith(f"{ROOT}/")] == [], path
        inside = {each.removeprefix(ROOT).replace("&amp;", "&") for each in found}
        waiting += [each for each in inside if each not in seen and each not in waiting]
        assert len(seen) < 200
    assert {"/", "/audit", "/events?state=dead", "/static/renew.js", "/api/openapi.json"} <= seen


def test_page_is_current_in_the_navigation_below_a_path_too(below: TestClient) -> None:
    for path in ("/", "/audit", "/api/docs"):
        assert f'<a href="{ROOT}{path}" aria-current="page">' in below.get(f"{ROOT}{path}").text
    assert f'<a href="{ROOT}/" aria-current="page">' in below.get(ROOT).text  # without its last slash


def test_what_was_stored_keeps_its_text_though_it_looks_like_an_address_of_a_page(
    below: TestClient, outbox: Outbox
) -> None:
    text = ' href="/events" src="/x" action="/pause" '
    row = outbox.index("contacts", "c1", {"name": text})
    page = below.get(f"{ROOT}/events/{row}").text
    assert text.replace('"', "\\&#34;") in page


def test_program_that_reads_the_openapi_document_asks_below_the_path(below: TestClient) -> None:
    document = below.get(f"{ROOT}/api/openapi.json").json()
    assert document["servers"] == [{"url": ROOT}]
    assert below.get(f"{document['servers'][0]['url']}{PAUSE.replace('pause', 'status')}").status_code == 200
    assert f"<code>{ROOT}{PAUSE}</code>" in below.get(f"{ROOT}/api/docs").text


def test_path_that_only_begins_alike_is_none_of_the_dashboard(below: TestClient) -> None:
    assert below.get(f"{ROOT}er/events").status_code == 404
    assert below.get(f"{ROOT}{ROOT}/events").status_code == 404


@pytest.mark.parametrize("prefix", [ROOT, ""])
def test_form_leads_back_below_the_path(below: TestClient, outbox: Outbox, prefix: str) -> None:
    kill(outbox, row := outbox.index("contacts", "c1", {}))
    for path, form, back in (
        ("/pause", {"reason": "a test"}, "/?done=Paused"),
        ("/resume", {}, "/?done=Resumed"),
        ("/dead/retry", {"id": str(row), "back": f"/events/{row}"}, f"/events/{row}?done="),
        ("/login", {"next": "/audit"}, "/audit"),
    ):
        answer = below.post(f"{prefix}{path}", data=form, follow_redirects=False)
        assert answer.status_code == 303
        assert answer.headers["location"].startswith(f"{ROOT}{back}")


@pytest.mark.parametrize("prefix", [ROOT, ""])
def test_login_below_a_path_asks_for_the_token_and_keeps_its_cookie_there(
    engine: Engine, search_db: EmbeddedDestination, prefix: str
) -> None:
    with client_of(engine, search_db, admin_root_path=ROOT, admin_token=TOKEN) as client:
        client.follow_redirects = False
        assert client.get(f"{prefix}/health/live").status_code == 200
        assert client.get(f"{prefix}/static/style.css").headers["cache-control"] == "public, max-age=300"
        assert client.get(f"{prefix}/metrics").status_code == 401
        asked = client.get(f"{prefix}/events?state=dead", headers=HTML)
        assert asked.headers["location"] == f"{ROOT}/login?next=/events%3Fstate%3Ddead"
        answer = client.post(f"{prefix}/login", data={"token": TOKEN, "next": "/events?state=dead"})
        assert answer.headers["location"] == f"{ROOT}/events?state=dead"
        assert f"path={ROOT};" in f"{answer.headers['set-cookie'].lower()};"
        assert client.get(f"{ROOT}/events", headers=HTML).status_code == 200
        gone = client.post(f"{prefix}/logout", headers={**BEARER})
        assert gone.headers["location"] == f"{ROOT}/login"
        assert f"path={ROOT};" in f"{gone.headers['set-cookie'].lower()};"


def test_role_that_may_not_is_refused_below_a_path_too(engine: Engine, search_db: EmbeddedDestination) -> None:
    looks = {"Authorization": "Bearer looks-and-looks-and-looks"}
    given = {"admin_tokens": "ada:look:looks-and-looks-and-looks", "admin_root_path": ROOT}
    with client_of(engine, search_db, **given) as client:
        for path in (PAUSE, f"{ROOT}{PAUSE}", f"{ROOT}/pause", f"{ROOT}/dead/discard"):
            assert client.post(path, headers=looks).status_code == 403, path


@pytest.mark.parametrize("path", ["/events", "/api", "/static", "/health/x", "/login", "/dead", "/api/outbox"])
def test_root_path_that_cannot_be_told_from_the_servers_own(
    engine: Engine, search_db: EmbeddedDestination, path: str
) -> None:
    with pytest.raises(ConfigurationError, match=f"OUTBOX_ADMIN_ROOT_PATH: {path} .*/outbox"):
        create_app(engine, settings(admin_root_path=path), search_db, None)


# -- what proxies tell ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("address", [PROXY, f"::ffff:{PROXY}", "2001:db8::1"])
def test_client_that_a_named_proxy_tells_of_is_in_the_audit_and_in_the_log(
    through: Through, outbox: Outbox, address: str
) -> None:
    client = through(address)
    with lines() as said:
        assert client.post(PAUSE, json={"reason": "a test"}, headers={**BEARER, **TELLS}).status_code == 200
        assert client.get("/metrics", headers=TELLS).status_code == 401
        assert client.post("/login", data={"token": "wrong"}, headers=TELLS).status_code == 401
    assert outbox.store().control().paused_by == "admin at 203.0.113.9"
    assert sum("203.0.113.9" in each for each in said) == 3
    assert not [each for each in said if address in each]


def test_headers_of_somebody_else_change_nothing(through: Through, outbox: Outbox) -> None:
    client = through(SOMEBODY)
    with lines() as said:
        assert client.post(PAUSE, json={"reason": "a test"}, headers={**BEARER, **TELLS}).status_code == 200
        assert client.get("/metrics", headers=TELLS).status_code == 401
        sent_by = {"Origin": "https://ops.example", **TELLS}
        assert client.post("/login", data={"token": TOKEN}, headers=sent_by).status_code == 403
        cookie = client.post("/login", data={"token": TOKEN}, headers=TELLS).headers["set-cookie"]
    assert "secure" not in cookie.lower()
    assert outbox.store().control().paused_by == f"admin at {SOMEBODY}"
    assert not [each for each in said if "203.0.113.9" in each]


def test_without_named_proxies_nobody_is_believed(through: Through, outbox: Outbox) -> None:
    for address in (PROXY, "127.0.0.1"):
        client = through(address, admin_proxies=[])
        assert client.post(PAUSE, json={"reason": "a test"}, headers={**BEARER, **TELLS}).status_code == 200
        assert outbox.store().control().paused_by == f"admin at {address}"


def test_client_that_makes_up_who_it_is_and_where_is_found_out_by_what_the_proxy_adds(
    through: Through, outbox: Outbox
) -> None:
    client = through(PROXY)
    told = {
        "X-Forwarded-For": f"127.0.0.1, 198.51.100.1, {SOMEBODY}, 10.9.9.9",  # and a proxy before the proxy
        "X-Forwarded-Host": "evil.example, ops.example",
    }
    assert client.post(PAUSE, json={"reason": "a test"}, headers={**BEARER, **told}).status_code == 200
    assert outbox.store().control().paused_by == f"admin at {SOMEBODY}"
    for origin, status in (("http://evil.example", 403), ("http://ops.example", 303)):
        answer = client.post("/login", data={"token": TOKEN}, headers={**told, "Origin": origin})
        assert answer.status_code == status


def test_behind_tls_the_cookie_is_secure_and_only_pages_of_the_site_itself_may_act(through: Through) -> None:
    client = through(PROXY)
    cookie = client.post("/login", data={"token": TOKEN}, headers=TELLS).headers["set-cookie"]
    assert "; secure" in cookie.lower()
    session = {**TELLS, "Cookie": cookie.partition(";")[0]}
    for origin, status in (
        ("https://ops.example", 303),
        ("http://ops.example", 403),  # what somebody on the way made up
        ("https://other.example", 403),
        ("https://127.0.0.1:8321", 403),  # the name that the proxy uses
    ):
        assert client.post("/resume", headers={**session, "Origin": origin}).status_code == status, origin
