"""What operators do leaves a trace: by command, API and dashboard, also where it failed or was killed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from loguru import logger
from sqlalchemy import Engine

from outbox.cli import main
from outbox.cli.audit import operator_name
from outbox.destinations.embedded.destination import EmbeddedDestination
from outbox.errors import DatabaseUnavailable
from outbox.maintenance.pruner import prune_all
from outbox.store import audit, operators
from outbox.store.models import now_ms
from outbox.store.store import Store
from tests.admin.test_roles import GIVEN, NAMES, bearer
from tests.admin.world import API, kill
from tests.support.outbox import Outbox, settings
from tests.support.serving import TestClient, client_of


@pytest.fixture
def client(engine: Engine, tmp_path: Path) -> Iterator[TestClient]:
    destination = EmbeddedDestination(tmp_path / "search.db")
    with client_of(engine, destination, admin_tokens=GIVEN) as client:
        yield client
    destination.close()


def call(outbox: Outbox, *words: str) -> Result:
    return CliRunner().invoke(main, [*words, "--database-url", outbox.url])


def done(outbox: Outbox) -> list[dict[str, Any]]:
    """Oldest first."""
    return audit.newest(outbox.store(), 100)[::-1]


def test_every_command_that_acts_is_noted_with_who_what_and_how_many(outbox: Outbox) -> None:
    outbox.index_many("contacts", [(f"c{n}", {}) for n in range(5)])
    for row in (1, 2):
        kill(outbox, row)
    for words in (
        ("pause", "--reason", "upgrade", "--index", "contacts"),
        ("resume", "--index", "contacts"),
        ("dead", "retry", "1"),
        ("dead", "discard", "--index", "contacts", "--yes"),
        ("purge", "--yes"),
    ):
        assert call(outbox, *words).exit_code == 0, words
    assert [(each["action"], each["about"], each["affected"]) for each in done(outbox)] == [
        ("pause", "index=contacts reason=upgrade", None),
        ("resume", "index=contacts", None),
        ("dead retry", "ids=1", 1),
        ("dead discard", "index=contacts", 1),
        ("purge", "all", 4),
    ]
    assert {each["acted_by"] for each in done(outbox)} == {operator_name()}
    assert all(each["ended_at"] >= each["began_at"] and each["error"] is None for each in done(outbox))


def test_what_is_done_by_api_and_dashboard_is_noted_with_the_name_of_the_token(client: TestClient) -> None:
    client.post(f"{API}/pause", json={"reason": "upgrade"}, headers=bearer("operate"))
    client.post("/resume", headers=bearer("administer"))
    found = client.get(f"{API}/audit", headers=bearer("look")).json()
    assert [(each["action"], each["actedBy"]) for each in found] == [
        ("resume", f"{NAMES['administer']} at testclient"),
        ("pause", f"{NAMES['operate']} at testclient"),
    ]
    older = client.get(f"{API}/audit", params={"cursor": found[0]["id"]}, headers=bearer("look")).json()
    assert older == found[1:]
    page = client.get("/audit", headers=bearer("look")).text
    assert "reason=upgrade" in page and f"{NAMES['operate']} at testclient" in page


def test_request_that_was_refused_for_its_role_leaves_no_action(client: TestClient, outbox: Outbox) -> None:
    assert client.post(f"{API}/pause", json={"reason": "x"}, headers=bearer("look")).status_code == 403
    assert done(outbox) == []


def test_action_that_fails_is_noted_with_why(client: TestClient, outbox: Outbox) -> None:
    assert client.post(f"{API}/dead/retry", json={"ids": [7]}, headers=bearer("operate")).status_code == 404
    (found,) = done(outbox)
    assert found["error"].startswith("no dead row 7") and found["ended_at"]
    assert "failed: no dead row 7" in call(outbox, "audit").output


def test_action_that_is_interrupted_was_noted_before_it_began(outbox: Outbox, monkeypatch: pytest.MonkeyPatch) -> None:
    outbox.index("contacts", "c1", {})
    noted: list[dict[str, Any]] = []

    def killed(*_: Any, **__: Any) -> int:
        noted.extend(done(outbox))
        raise KeyboardInterrupt

    monkeypatch.setattr(operators, "purge", killed)
    call(outbox, "purge", "--yes")
    assert [(each["action"], each["ended_at"]) for each in noted] == [("purge", None)]
    assert done(outbox)[0]["error"] == "KeyboardInterrupt"


def interrupted(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """Whatever works in steps is interrupted after the first one, which is a row."""

    def interrupt(_began: float) -> float:
        raise error

    monkeypatch.setattr(Store, "in_steps", lambda _self, rows: ([row] for row in rows))
    monkeypatch.setattr("outbox.store.operators.pause_after", interrupt)


@pytest.mark.parametrize("command", ["purge --yes", "dead discard --all --yes", "dead retry --all"])
def test_what_is_interrupted_half_way_is_noted_and_logged_with_what_it_did(
    outbox: Outbox, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    interrupted(monkeypatch, KeyboardInterrupt())
    outbox.index_many("contacts", [("c1", {}), ("c2", {})])
    if command.startswith("dead"):
        outbox.raw("UPDATE outbox_events SET state = 'dead', error_type = 'x', available_at = NULL")
    said = call(outbox, *command.split())
    (found,) = done(outbox)
    assert (found["affected"], found["error"]) == (1, "KeyboardInterrupt")
    if "retry" not in command:
        assert ": 1 " in said.stderr and f"row removed for good by {operator_name()}" in said.stderr


@pytest.mark.parametrize("what", ["dead/discard", "purge"])
def test_what_fails_half_way_by_the_api_is_noted_and_logged_with_what_it_did(
    client: TestClient, outbox: Outbox, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    interrupted(monkeypatch, DatabaseUnavailable("database: disk I/O error"))
    said: list[str] = []
    logger.add(said.append, level="WARNING", format="{message}")
    outbox.index_many("contacts", [("c1", {}), ("c2", {})])
    if what != "purge":
        outbox.raw("UPDATE outbox_events SET state = 'dead', error_type = 'x', available_at = NULL")
    answer = client.post(f"{API}/{what}", json={"index": "contacts"}, headers=bearer("administer"))
    assert (answer.status_code, done(outbox)[0]["affected"]) == (503, 1)
    assert len([line for line in said if ": 1 " in line and "row removed for good" in line]) == 1


def test_audit_is_shown_for_people_and_exported_for_machines(outbox: Outbox) -> None:
    assert call(outbox, "audit").output == "nothing was done so far\n"
    call(outbox, "pause", "--reason", "line\nbreak")
    (line,) = call(outbox, "audit").output.splitlines()
    assert f"{operator_name()}  pause  reason=line\\nbreak" in line
    (exported,) = json.loads(call(outbox, "audit", "--json").output)
    assert exported["action"] == "pause"
    assert json.loads(call(outbox, "audit", "--json", "--by", "somebody else").output) == []


def test_audit_is_kept_as_long_as_statistics(outbox: Outbox) -> None:
    with audit.noted(outbox.store(), "ada", "purge"):
        pass
    day = 86_400_000
    prune_all(outbox.store(), settings(stats_retention_days=2.0), now_ms() + day, lambda _: False)
    assert len(done(outbox)) == 1
    prune_all(outbox.store(), settings(stats_retention_days=2.0), now_ms() + 3 * day, lambda _: False)
    assert done(outbox) == []
