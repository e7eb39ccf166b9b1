"""What takes a tenant as a filter takes it in any spelling, and says so if there is none."""

from __future__ import annotations

import enum
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from click.testing import CliRunner, Result
from sqlalchemy import Engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from outbox import EntityRegistry, InvalidName, OutboxRepository
from outbox.cli import main
from outbox.destinations.embedded.destination import EmbeddedDestination
from outbox.relay.rate import TenantRates
from outbox.store import figures
from outbox.store.models import now_ms
from outbox.testing import OutboxTester
from tests.support.outbox import Outbox
from tests.support.serving import client_of

TENANT = UUID("0f8fad5b-d9cb-469f-a165-70867728950e")
DASHED, DIGITS = str(TENANT), TENANT.hex
SPELLINGS = (DASHED, DIGITS, DASHED.upper(), f"{{{DASHED}}}")


class Plan(enum.Enum):
    FREE = "free of charge"


class Base(DeclarativeBase):
    pass


class Note(Base):
    __tablename__ = "notes"
    id: Mapped[int] = mapped_column(primary_key=True)
    tenant: Mapped[UUID]
    text: Mapped[str]


class Seat(Base):
    __tablename__ = "seats"
    id: Mapped[int] = mapped_column(primary_key=True)
    plan: Mapped[Plan]


REGISTRY = EntityRegistry()
REGISTRY.add(Note, index="notes", fields=["text"], tenant="tenant", tenancy="prefixed")
REGISTRY.add(Seat, index="seats", fields=["plan"], tenant="plan", tenancy="prefixed")


@pytest.fixture
def dead(outbox: Outbox) -> list[int]:
    """Dead rows of one tenant in two spellings, and one of another."""
    Base.metadata.create_all(outbox.engine)
    rows = [outbox.index("notes", tenant, {}, tenant_id=tenant) for tenant in (DASHED, DIGITS, "other")]
    outbox.raw("UPDATE outbox_events SET state = 'dead', error_type = 'x', error = 'x', finished_at = 1")
    return rows


@pytest.fixture
def call(outbox: Outbox, tmp_path: Path) -> Callable[..., Result]:
    environment = {
        "OUTBOX_DATABASE_URL": outbox.url,
        "OUTBOX_DESTINATION": "embedded",
        "OUTBOX_EMBEDDED_PATH": str(tmp_path / "search.db"),
        "OUTBOX_ENTITIES": f"{__name__}:REGISTRY",
    }
    return lambda *arguments: CliRunner().invoke(main, arguments, env=environment)


@pytest.mark.parametrize("spelled", SPELLINGS)
def test_dead_rows_are_listed_retried_and_discarded_by_any_spelling(
    dead: list[int], call: Callable[..., Result], outbox: Outbox, spelled: str
) -> None:
    listed = json.loads(call("dead", "list", "--tenant", spelled, "--json").stdout)
    assert [row["id"] for row in listed] == dead[:2]
    assert call("dead", "retry", str(dead[0]), "--tenant", spelled).exit_code == 0
    assert outbox.state(dead[0]) == "pending"
    assert "1 dead row is removed" in call("dead", "discard", "--tenant", spelled, "--yes").stdout
    assert [row["id"] for row in outbox.dead()] == dead[2:]


@pytest.mark.parametrize("command", [["dead", "list"], ["dead", "retry"], ["dead", "discard", "--yes"], ["verify"],
                                     ["reindex", "--all"], ["tenant", "drop", "--yes"]], ids=" ".join)  # fmt: skip
def test_tenant_that_exists_nowhere_is_said(dead: list[int], call: Callable[..., Result], command: list[str]) -> None:
    assert dead
    named = ["nobody"] if command[0] == "tenant" else ["--tenant", "nobody"]
    result = call(*command, *named)
    assert (result.exit_code, "error: there is no tenant 'nobody'; there " in result.stderr) == (1, True)


def test_tenant_that_only_an_entity_has_is_known(dead: list[int], call: Callable[..., Result], outbox: Outbox) -> None:
    outbox.raw("INSERT INTO seats (id, plan) VALUES (1, 'FREE')")
    for spelled in ("FREE", "free of charge"):
        result = call("dead", "list", "--tenant", spelled)
        assert (result.exit_code, result.stdout) == (0, "no dead rows\n")
    assert "there are FREE" in call("dead", "list", "--tenant", "none").stderr
    outbox.raw("UPDATE outbox_events SET tenant_id = 'FREE' WHERE id = :id", id=dead[0])
    (row,) = json.loads(call("dead", "list", "--tenant", "free of charge", "--json").stdout)
    assert row["id"] == dead[0]


def test_search_takes_any_spelling_and_says_that_no_document_is_of_a_tenant(
    outbox: Outbox, embedded: EmbeddedDestination, call: Callable[..., Result]
) -> None:
    outbox.index("notes", "1", {"text": "zebra", "tenantId": DIGITS})
    outbox.drain(embedded)
    for spelled in SPELLINGS:
        assert "1 match" in call("search", "notes", "zebra", "--tenant", spelled).stdout
        assert call("search", "notes", "lion", "--tenant", spelled).exit_code == 0
    nobody = call("search", "notes", "zebra", "--tenant", "nobody")
    assert (nobody.exit_code, nobody.stderr) == (1, "error: no document of index notes is of tenant 'nobody'\n")


def test_api_and_dashboard_filter_by_any_spelling(
    dead: list[int], outbox: Outbox, embedded: EmbeddedDestination
) -> None:
    with client_of(outbox.engine, embedded, REGISTRY) as client:
        for spelled in SPELLINGS:
            items = client.get("/api/v1/admin/events", params={"tenant": spelled}).json()["items"]
            assert [item["id"] for item in items] == [dead[1], dead[0]]
            page = client.get("/events", params={"tenant": spelled, "state": "dead"}).text
            assert "All 2 dead rows of this filter" in page
        unknown = client.post("/api/v1/admin/dead/retry", json={"tenantId": "nobody"})
        assert (unknown.status_code, "there is no tenant 'nobody'" in unknown.text) == (422, True)
        assert "No row of tenant nobody waits or is dead" in client.get("/events", params={"tenant": "nobody"}).text
        assert client.post("/api/v1/admin/dead/retry", json={"tenantId": DASHED.upper()}).json()["pending"] == 2


@pytest.mark.parametrize(
    ("given", "text"), [(TENANT, DASHED), (DIGITS, DIGITS), (7, "7"), (Plan.FREE, "free of charge"), ("a", "a")]
)
def test_tenant_is_written_as_what_it_is(outbox: Outbox, given: object, text: str) -> None:
    with OutboxTester(outbox.engine) as tester, outbox.sessions() as session:
        repo = OutboxRepository(session)
        repo.index("notes", "1", {}, tenant_id=given)
        repo.update("notes", "1", {"a": 1}, tenant_id=given)
        repo.delete("notes", "1", tenant_id=given)
        repo.index_many("notes", [("2", {})], tenant_id=given)
        session.commit()
        assert [row["tenant_id"] for row in tester.rows()] == [text] * 4
        tester.assert_enqueued("notes", "1", tenant_id=given, times=3)


@pytest.mark.parametrize("spelled", [TENANT, *SPELLINGS])
def test_registered_entity_is_refreshed_at_its_place_by_any_spelling(outbox: Outbox, spelled: Any) -> None:
    Base.metadata.create_all(outbox.engine)
    with outbox.sessions.begin() as session:
        OutboxRepository(session, REGISTRY).refresh("notes", 1, tenant_id=spelled)
        OutboxRepository(session, REGISTRY).index("notes", f"36:{DASHED}:1", {}, tenant_id=spelled)
    assert {(row["document_id"], row["tenant_id"]) for row in outbox.store().events()} == {
        (f"36:{DASHED}:1", DASHED)
    }  # fmt: skip


@pytest.mark.parametrize("given", [True, 1.5, b"acme", ["acme"], "", "a\nb"])
def test_what_is_no_tenant_is_refused_at_write(outbox: Outbox, given: object) -> None:
    with outbox.sessions.begin() as session, pytest.raises(InvalidName, match="tenant id"):
        OutboxRepository(session).index("notes", "1", {}, tenant_id=given)


def test_spellings_of_a_tenant_share_its_rate_and_its_place_on_the_dashboard(outbox: Outbox, engine: Engine) -> None:
    rates = TenantRates(10)
    rates.took([DASHED] * 5 + [DIGITS] * 5, 1_000)
    assert {DASHED, DIGITS, DASHED.upper()} <= set(rates.exhausted(1_000))
    with Session(engine) as session, session.begin():
        for tenant in (DASHED, DIGITS):
            OutboxRepository(session).index("notes", tenant, {}, tenant_id=tenant)
    assert [(lag.tenant, lag.rows) for lag in figures.lags(outbox.store(), now_ms())] == [(DASHED, 2)]
