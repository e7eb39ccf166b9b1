"""Who may do what, by role; and what nobody is shown."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from loguru import logger
from sqlalchemy import Engine

from outbox.destinations.embedded.destination import EmbeddedDestination
from outbox.errors import ConfigurationError
from outbox.settings import load
from outbox.store.models import now_ms
from tests.admin.world import PAUSE
from tests.support.outbox import Outbox, settings
from tests.support.serving import TOKEN, TestClient, client_of, every_route

TOKENS = {"look": "look-" + "a" * 32, "operate": "operate-" + "b" * 32, "administer": "administer-" + "c" * 32}
NAMES = {"look": "grafana", "operate": "ada", "administer": "grace"}
GIVEN = ", ".join(f"{NAMES[role]}:{role}:{token}" for role, token in TOKENS.items())
RANKS = list(TOKENS)

NEEDED = {
    "/pause": "operate",
    "/resume": "operate",
    "/dead/retry": "operate",
    "/dead/discard": "administer",
    "/purge": "administer",
    "/reindex": "operate",
    "/reindex/cancel": "operate",
    "/reindex/1/cancel": "operate",
    "/reindex/rollback": "operate",
    "/verify": "operate",
    "/verify/cancel": "operate",
    "/verify/1/cancel": "operate",
    "/document/deliver": "operate",
    "/logout": "look",
    "/login": None,
}
"""What each path needs that changes something, with and without /api/v1/admin before it."""


@pytest.fixture
def client(engine: Engine, tmp_path: Path) -> Iterator[TestClient]:
    destination = EmbeddedDestination(tmp_path / "search.db")
    with client_of(engine, destination, admin_token=TOKEN, admin_tokens=GIVEN) as client:
        yield client
    destination.close()


def bearer(role: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {TOKENS[role]}"}


def test_every_operation_is_open_to_its_role_and_those_above_alone(client: TestClient) -> None:
    changing = [path for method, path in every_route(client) if method == "POST"]
    assert {path.removeprefix("/api/v1/admin") for path in changing} == NEEDED.keys()  # a new one is decided on here
    for method, path in every_route(client):
        needed = NEEDED[path.removeprefix("/api/v1/admin")] if method == "POST" else "look"
        for role in RANKS:
            status = client.request(method, path, headers=bearer(role), follow_redirects=False).status_code
            may = needed is None or RANKS.index(role) >= RANKS.index(needed)
            assert (status != 403) == may, (method, path, role, status)


def test_request_that_changes_something_in_no_known_way_needs_the_highest_role(client: TestClient) -> None:
    for path in (
        "/api/v1/admin/pause/",
        "/api/v1/admin/dead",
        "//pause",
        "/pause/x",
        "/api/v1/admin/reindex/1x/cancel",
        "/api/v1/admin/verify/1/cancel/x",
    ):
        for method in ("POST", "PUT", "DELETE", "PATCH"):
            assert client.request(method, path, headers=bearer("operate")).status_code == 403, (method, path)
    assert client.request("DELETE", PAUSE, headers=bearer("operate")).status_code == 405


def test_session_of_a_browser_has_the_role_of_its_token_and_pages_offer_no_more(client: TestClient) -> None:
    offered = {
        "look": set[str](),
        "operate": {"/pause"},
        "administer": {"/pause"},
    }
    for role, token in TOKENS.items():
        client.post("/login", data={"token": token})
        page = client.get("/", headers={"Accept": "text/html"}).text
        assert f"{NAMES[role]} may {role}" in page
        assert {*re.findall(r'method="post" action="([^"]+)"', page)} - {"/logout"} == offered[role]
        origin = {"Origin": "http://127.0.0.1:8321"}
        assert client.post("/dead/discard", headers=origin).status_code == (422 if role == "administer" else 403)
        assert client.post("/logout", headers=origin, follow_redirects=False).status_code == 303


def test_dead_rows_are_offered_to_be_discarded_by_whom_may(client: TestClient, outbox: Outbox) -> None:
    outbox.index("contacts", "c1", {"name": "Ada"})
    outbox.raw("UPDATE outbox_events SET state = 'dead', finished_at = :now, error_type = 'Refused'", now=now_ms())
    for role in RANKS:
        client.post("/login", data={"token": TOKENS[role]})
        for path, retry, discard in (
            ("/events?state=dead", "do=retry", "do=discard"),
            ("/events/1", "/dead/retry", "/dead/discard"),
            ("/confirm?do=retry&state=dead", "/dead/retry", "never"),
            ("/confirm?do=discard&state=dead", "never", "/dead/discard"),
        ):
            page = client.get(path, headers={"Accept": "text/html"}).text
            assert (retry in page) == (role != "look" and retry != "never"), (role, path)
            assert (discard in page) == (role == "administer" and discard != "never"), (role, path)


def test_who_acted_is_named(client: TestClient, outbox: Outbox) -> None:
    client.post(PAUSE, json={"reason": "a test"}, headers=bearer("operate"))
    assert outbox.store().control().paused_by == "ada at testclient"
    client.post(PAUSE, json={"reason": "a test"}, headers={"Authorization": f"Bearer {TOKEN}"})
    assert outbox.store().control().paused_by == "admin at testclient"


def test_refusal_says_what_is_needed_and_is_logged_without_the_token(client: TestClient) -> None:
    said: list[str] = []
    sink = logger.add(lambda message: said.append(str(message)))
    detail = client.post(PAUSE, json={"reason": "a test"}, headers=bearer("look")).json()["detail"]
    logger.remove(sink)
    assert detail == "grafana may look: this needs the role operate (OUTBOX_ADMIN_TOKENS)"
    assert detail in said[0] and TOKENS["look"] not in said[0]
    assert TOKENS["look"] not in repr(settings(admin_tokens=GIVEN))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("ada:operate:short", "the token of ada can be guessed"),
        (f"ada:own:{TOKENS['look']}", "token 1 is not NAME:ROLE:TOKEN"),
        (TOKENS["look"], "token 1 is not NAME:ROLE:TOKEN"),
        (f"ada:look:{TOKENS['look']},ada:operate:{TOKENS['operate']}", "two have the same name"),
        (f"ada:look:{TOKENS['look']},grace:operate:{TOKENS['look']}", "two have the same name or the same token"),
        (f"admin:look:{TOKENS['look']}", "admin is the name of OUTBOX_ADMIN_TOKEN"),
    ],
)
def test_tokens_that_do_not_say_who_may_what(given: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OUTBOX_ADMIN_TOKENS", given)
    with pytest.raises(ConfigurationError, match=re.escape(said)) as error:
        load()
    assert not any(token in str(error.value) for token in TOKENS.values())


def test_token_with_blanks_around_it_is_the_one_that_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OUTBOX_ADMIN_TOKENS", f"ada : operate: {TOKENS['operate']} , grafana:look:\t{TOKENS['look']}")
    assert load().named_tokens == (("ada", "operate", TOKENS["operate"]), ("grafana", "look", TOKENS["look"]))


def test_token_of_a_name_that_is_the_one_without_a_name_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OUTBOX_ADMIN_TOKEN", f"{TOKENS['look']}\n")
    monkeypatch.setenv("OUTBOX_ADMIN_TOKENS", f"ada:operate:{TOKENS['operate']},grafana:look:{TOKENS['look']}")
    with pytest.raises(
        ConfigurationError, match=r"^OUTBOX_ADMIN_TOKENS: the token of grafana is that of OUTBOX_"
    ) as error:
        load()
    assert TOKENS["look"] not in str(error.value)


# -- what is hidden ---------------------------------------------------------------------------------------------------

DOCUMENT: dict[str, Any] = {
    "name": "Ada",
    "email": "ada@secret.example",
    "address": {"city": "London", "notes": ["beware of SECRET"]},
    "members": [{"email": {"work": "SECRET"}}],
    "address.notes": "SECRET",
}


def test_hidden_fields_are_nowhere_in_what_the_server_answers(engine: Engine, outbox: Outbox, tmp_path: Path) -> None:
    outbox.index("contacts", "c1", DOCUMENT)
    outbox.raw(
        "UPDATE outbox_events SET state = 'dead', finished_at = :now, error_type = 'Refused', error = :error",
        now=now_ms(),
        error="failed to parse field [email] of type [ip]. Preview of field's value: 'ada@secret.example'; SECRET",
    )
    destination = EmbeddedDestination(tmp_path / "search.db")
    asked = ("/events", "/events/1", "/api/v1/admin/events", "/api/v1/admin/events/1")
    with client_of(engine, destination) as client:
        assert all("secret" in client.get(path, headers={"Accept": "text/html"}).text for path in asked)
    with client_of(engine, destination, admin_hide="email,notes") as client:
        answers = [client.get(path, headers={"Accept": "text/html"}).text for path in asked]
        shown = client.get("/api/v1/admin/events/1").json()["document"]
    destination.close()
    assert not any("secret" in answer.lower() for answer in answers)
    hidden = "(hidden by OUTBOX_ADMIN_HIDE)"
    assert shown == {
        "name": "Ada",
        "email": hidden,
        "address": {"city": "London", "notes": hidden},
        "members": [{"email": hidden}],
        "address.notes": hidden,
    }


def test_path_hides_that_field_alone_nested_in_lists_and_written_with_a_dot(
    engine: Engine, outbox: Outbox, tmp_path: Path
) -> None:
    address = {"email": "SECRET", "mail": "shown"}
    document = {"email": "shown", "address": address, "address.email": "SECRET", "members": [{"address": [address]}]}
    outbox.index("contacts", "c1", document)
    destination = EmbeddedDestination(tmp_path / "search.db")
    with client_of(engine, destination, admin_hide="address.email") as client:
        shown = client.get("/api/v1/admin/events/1").json()["document"]
    destination.close()
    hidden = "(hidden by OUTBOX_ADMIN_HIDE)"
    assert shown == json.loads(json.dumps(document).replace("SECRET", hidden))


IMMENSE = (
    'Document contains at least one immense term in field="email" (whose UTF8 encoding is longer than the max length '
    "32766), all of which were skipped. Please correct the analyzer to not produce such terms. The prefix of the first "
    "immense term is: '[115, 101, 99, 114, 101, 116]...', original message: bytes can be at most 32766 in length"
)


@pytest.mark.parametrize(("error", "value"), [(None, "secret"), (IMMENSE, "115, 101")], ids=["embedded", "immense"])
def test_value_is_hidden_however_the_error_quotes_it(
    error: str | None, value: str, engine: Engine, outbox: Outbox, tmp_path: Path
) -> None:
    destination = EmbeddedDestination(tmp_path / "search.db")
    destination.ensure_index("contacts", {"properties": {"email": {"type": "long"}}})
    row = outbox.index("contacts", "c1", {"email": "ada@secret.example"})
    outbox.drain(destination, now_ms())
    if error:
        outbox.raw("UPDATE outbox_events SET error = :error", error=error)
        outbox.raw("UPDATE outbox_failures SET error = :error", error=error)
    assert value in outbox.row(row)["error"]
    asked = ("/events", "/events/1", "/api/v1/admin/events", "/api/v1/admin/events/1")
    with client_of(engine, destination, admin_hide="email") as client:
        answers = [client.get(path, headers={"Accept": "text/html"}).text for path in asked]
    destination.close()
    assert [path for path, answer in zip(asked, answers, strict=True) if value in answer] == []
    assert "hidden by OUTBOX_ADMIN_HIDE" in answers[-1]


def test_value_that_a_rebuild_was_refused_with_is_hidden_too(engine: Engine, outbox: Outbox, tmp_path: Path) -> None:
    said = "index x would miss c1: Preview of field's value: 'SECRET'"
    outbox.raw(
        "INSERT INTO outbox_reindex_jobs (index_name, old_index, phase, state, error)"
        " VALUES ('contacts', 'contacts-000001', 'scan', 'running', :error)",
        error=said,
    )
    outbox.raw(
        "INSERT INTO outbox_audit (began_at, acted_by, action, about, error) VALUES (1, 'ada', 'reindex', 'x', :error)",
        error=said,
    )
    outbox.index("contacts", "c1", {})
    destination = EmbeddedDestination(tmp_path / "search.db")
    pages = ("/", "/reindexes", "/index?index=contacts", "/audit")
    api = ("/status", "/reindex", "/reindex/1", "/index?index=contacts", "/audit")
    asked = [*pages, *(f"/api/v1/admin{path}" for path in api)]
    with client_of(engine, destination) as client:
        assert [path for path in asked if "SECRET" not in client.get(path, headers={"Accept": "text/html"}).text] == []
    with client_of(engine, destination, admin_hide="email") as client:
        assert [path for path in asked if "SECRET" in client.get(path, headers={"Accept": "text/html"}).text] == []
    destination.close()
