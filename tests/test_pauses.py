"""An index or a tenant is paused: its rows gather, those of others flow, and all are told what is paused and why."""

from __future__ import annotations

import enum
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from loguru import logger
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker

from outbox import EntityRegistry, OutboxRepository, check
from outbox.cli import main
from outbox.destinations.embedded.destination import EmbeddedDestination
from outbox.errors import SyncTimeout
from outbox.store import pauses
from outbox.store.models import now_ms
from tests.support.outbox import Outbox
from tests.support.relays import Relays, until
from tests.support.watching import asked_of_stores

UUID_DASHED = "123e4567-e89b-12d3-a456-426614174000"
UUID_PLAIN = UUID_DASHED.replace("-", "")

Call = Callable[..., Result]


class Plan(enum.Enum):
    FREE = "free of charge"
    PAID = "paid"


class Base(DeclarativeBase):
    pass


class OfEnum(Base):
    __tablename__ = "of_enum"
    id: Mapped[int] = mapped_column(primary_key=True)
    tenant: Mapped[Plan]


class OfNumber(Base):
    __tablename__ = "of_number"
    id: Mapped[int] = mapped_column(primary_key=True)
    tenant: Mapped[int]


registry = EntityRegistry()
registry.add(OfEnum, index="enums", fields=["id"], tenant="tenant")
registry.add(OfNumber, index="numbers", fields=["id"], tenant="tenant")


@pytest.fixture
def call(outbox: Outbox, tmp_path: Path) -> Call:
    def call(*arguments: str, **given: str) -> Result:
        environment = {
            "OUTBOX_DATABASE_URL": outbox.url,
            "OUTBOX_DESTINATION": "embedded",
            "OUTBOX_EMBEDDED_PATH": str(tmp_path / "search.db"),
        }
        return CliRunner().invoke(main, arguments, env=environment | given)

    return call


@pytest.fixture
def destination(tmp_path: Path) -> EmbeddedDestination:
    return EmbeddedDestination(tmp_path / "search.db")


def four(outbox: Outbox) -> dict[str, int]:
    """A row of each of two tenants in each of two indexes."""
    return {
        f"{index}/{tenant}": outbox.index(index, f"{tenant}1", {}, tenant_id=tenant)
        for index in ("contacts", "deals")
        for tenant in ("acme", "globex")
    }


@pytest.mark.parametrize(
    ("selection", "held"),
    [
        (["--index", "contacts"], {"contacts/acme", "contacts/globex"}),
        (["--tenant", "acme"], {"contacts/acme", "deals/acme"}),
        (["--index", "contacts", "--tenant", "acme"], {"contacts/acme"}),
    ],
)
def test_rows_that_are_paused_gather_while_others_flow(
    outbox: Outbox, call: Call, destination: EmbeddedDestination, selection: list[str], held: set[str]
) -> None:
    rows = four(outbox)
    assert call("pause", *selection, "--reason", "import").exit_code == 0
    outbox.drain(destination)
    assert {name for name, row in rows.items() if outbox.state(row) == "pending"} == held
    assert call("resume").stdout.splitlines()[0] == "was not paused"
    assert call("resume", *selection).stdout == "resumed\n"
    outbox.drain(destination)
    assert {outbox.state(row) for row in rows.values()} == {"done"}


def test_relay_that_is_paused_leaves_the_write_lock_alone(
    outbox: Outbox, call: Call, destination: EmbeddedDestination
) -> None:
    relay = outbox.relay(destination)
    row = four(outbox)["contacts/acme"]
    assert call("pause", "--reason", "repair of the file").exit_code == 0
    with asked_of_stores() as asked:
        assert relay.run_once() == 0
    assert asked and not [sql for sql, _ in asked if sql.startswith("BEGIN")]
    assert call("resume").exit_code == 0
    assert relay.run_once() and outbox.state(row) == "done"


def test_rows_that_wait_for_their_next_attempt_stay_paused_and_fill_no_batch(
    outbox: Outbox, call: Call, destination: EmbeddedDestination
) -> None:
    outbox.index_many("contacts", [(f"c{n}", {}) for n in range(30)])
    tenant = "CASE id % 2 WHEN 0 THEN 'globex' ELSE 'acme' END"
    outbox.raw(f"UPDATE outbox_events SET available_at = 1, tenant_id = {tenant}")
    assert call("pause", "--index", "contacts", "--tenant", "acme", "--reason", "import").exit_code == 0
    outbox.drain(destination, batch_rows=5)
    assert outbox.counts() == {"pending": 15, "claimed": 0, "done": 15, "dead": 0}


def test_document_whose_earlier_row_is_paused_waits_with_it(
    outbox: Outbox, call: Call, destination: EmbeddedDestination
) -> None:
    outbox.index("contacts", "c1", {"n": 1}, tenant_id="acme")
    later = outbox.index("contacts", "c1", {"n": 2}, tenant_id="globex")
    call("pause", "--tenant", "acme", "--reason", "import")
    outbox.drain(destination)
    assert outbox.state(later) == "pending"
    call("resume", "--tenant", "acme")
    outbox.drain(destination)
    outbox.drain(destination, now_ms() + 60_000)
    assert outbox.counts()["done"] == 2
    assert destination.read("contacts-000001", ["c1"])["c1"].source == {"n": 2}


def test_tenant_typed_with_dashes_pauses_and_resumes_what_was_written_without(
    outbox: Outbox, call: Call, destination: EmbeddedDestination
) -> None:
    row = outbox.index("contacts", "c1", {}, tenant_id=UUID_PLAIN)
    assert call("pause", "--tenant", UUID_DASHED, "--reason", "import").exit_code == 0
    assert call("pause", "--tenant", UUID_PLAIN.upper(), "--reason", "still").exit_code == 0
    (paused,) = json.loads(call("status", "--json").stdout)["pauses"]
    assert (paused["reason"], paused["rows"]) == ("still", 1)
    outbox.drain(destination)
    assert outbox.state(row) == "pending"
    assert call("resume", "--tenant", UUID_PLAIN).stdout == "resumed\n"


def test_name_of_who_paused_all_cannot_write_to_the_terminal(outbox: Outbox, call: Call) -> None:
    pauses.pause(outbox.store(), "import", "ada\x1b]0;owned\x07\n0 dead", now_ms())
    assert r"by ada\x1b]0;owned\x07\n0 dead: import" in call("status").stdout


@pytest.mark.parametrize(("typed", "model", "tenant"), [("free of charge", OfEnum, Plan.FREE), ("007", OfNumber, 7)])
def test_tenant_typed_otherwise_than_rows_have_it_is_held_counted_and_named(
    outbox: Outbox, call: Call, destination: EmbeddedDestination, typed: str, model: type[Base], tenant: object
) -> None:
    application = {"OUTBOX_ENTITIES": f"{__name__}:registry"}
    Base.metadata.create_all(outbox.engine)
    captured = sessionmaker(outbox.engine, class_=type("Captured", (Session,), {}))
    registry.capture(captured)
    with captured() as session:
        repository = OutboxRepository(session, registry=registry)
        session.add(model(id=1, tenant=tenant))
        session.commit()
        assert call("pause", "--tenant", typed, "--reason", "import", **application).exit_code == 0
        with pytest.raises(SyncTimeout, match="is paused \\(import\\): 'outbox-relay resume --tenant "):
            repository.wait_until_synced(0)
    assert sum(each["rows"] for each in json.loads(call("status", "--json").stdout)["pauses"]) == 1
    refused = call("run", "--drain", **application)
    assert (refused.exit_code, "is paused (import)" in refused.stderr) == (2, True)
    assert outbox.relay(destination, registry=registry).run_once() == 0
    assert call("resume", "--tenant", typed, **application).stdout == "resumed\n"
    assert call("run", "--drain", **application).exit_code == 0
    assert outbox.counts()["done"] == 1


def test_tenant_of_an_application_that_cannot_be_imported_is_paused_as_it_is_written(
    outbox: Outbox, call: Call
) -> None:
    four(outbox)
    broken = {"OUTBOX_ENTITIES": "broken_by_the_last_deploy:registry"}
    paused = call("pause", "--tenant", "acme", "--reason", "import", **broken)
    assert (paused.exit_code, "OUTBOX_ENTITIES=broken_by_the_last_deploy" in paused.stderr) == (0, True)
    assert "import; 2 rows wait" in call("status").stdout
    assert call("resume", "--tenant", "acme", **broken).stdout == "resumed\n"


def test_each_who_asks_is_told_what_is_paused_by_whom_and_how_to_end_it(outbox: Outbox, call: Call) -> None:
    four(outbox)
    call("pause", "--index", "contacts", "--tenant", "acme", "--reason", "new\nmappings")
    remedy = "outbox-relay resume --index contacts --tenant acme"
    said = call("status").stdout
    assert "PAUSED: tenant acme in index contacts since" in said
    assert ": new\\nmappings; 1 row waits" in said and f"→ {remedy}" in said
    (found,) = [each for each in check.database(outbox.engine) if each.name == "pause"]
    assert (found.level, found.remedy) == ("warn", f"run '{remedy}' once the reason no longer holds")
    assert found.found.startswith("tenant acme in index contacts is paused by ")
    assert remedy in call("resume").stdout  # it ends another pause, and names the one that stays


@pytest.mark.parametrize("option", ["--index", "--tenant"])
def test_name_of_nothing_is_refused_with_those_that_there_are(
    outbox: Outbox, call: Call, destination: EmbeddedDestination, option: str
) -> None:
    four(outbox)
    outbox.drain(destination)
    refused = call("pause", option, "misspelt", "--reason", "import")
    assert refused.exit_code == (2 if option == "--index" else 1)
    assert f"there is no {option[2:]} 'misspelt'; there are {'contacts, deals' if option == '--index' else 'acme'}" in (
        refused.stderr
    )
    assert call("pause", option, "", "--reason", "import").exit_code == 2
    assert pauses.current(outbox.store().run) == ()


def test_drain_refuses_what_it_would_wait_for_and_delivers_the_rest(outbox: Outbox, call: Call) -> None:
    four(outbox)
    call("pause", "--tenant", "acme", "--reason", "import")
    refused = call("run", "--drain")
    assert refused.exit_code == 2
    assert "tenant acme is paused (import): run 'outbox-relay resume --tenant acme' first" in refused.stderr
    assert call("purge", "--index", "contacts", "--yes").exit_code == 0
    outbox.raw("DELETE FROM outbox_events WHERE tenant_id = 'acme'")
    assert call("run", "--drain").exit_code == 0
    assert outbox.counts()["pending"] == 0


def test_relay_says_once_that_a_pause_began_and_that_it_ended(outbox: Outbox, destination: EmbeddedDestination) -> None:
    lines: list[str] = []
    logger.add(lines.append, format="{level} {message}", filter="outbox.relay")
    four(outbox)
    relay = outbox.relay(destination)
    pauses.pause(outbox.store(), "import", "ada", now_ms(), index="deals")
    for _ in range(3):
        relay.run_once()
    pauses.resume(outbox.store(), index="deals")
    relay.run_once()
    of_pause = [line.strip() for line in lines if "pause" in line]
    assert of_pause == [
        "WARNING index deals is paused by ada (import); 'outbox-relay resume --index deals' lets it go on",
        "INFO index deals is no longer paused",
    ]


@pytest.mark.parametrize(
    ("selection", "what"), [([], "the outbox"), (["--index", "contacts"], "index contacts"), (["--tenant", "t"], "")]
)
def test_wait_for_rows_that_are_paused_ends_with_the_reason(
    outbox: Outbox, call: Call, selection: list[str], what: str
) -> None:
    outbox.index("contacts", "c1", {}, tenant_id="acme")
    outbox.index("notes", "n1", {}, tenant_id="t")
    call("pause", *selection, "--reason", "import")
    with outbox.sessions() as session:
        repository = OutboxRepository(session)
        repository.index("contacts", "c2", {}, tenant_id="acme")
        session.commit()
        with pytest.raises(SyncTimeout) as failed:
            repository.wait_until_synced(0)
    if what:
        assert f"{what} is paused (import): 'outbox-relay resume" in str(failed.value)
    else:
        assert "is a relay running?" in str(failed.value)  # what is paused is no row of this transaction


def test_running_relay_holds_a_paused_index_across_a_restart(outbox: Outbox, relays: Relays, tmp_path: Path) -> None:
    relays.give(OUTBOX_DESTINATION="embedded", OUTBOX_EMBEDDED_PATH=str(tmp_path / "search.db"))
    first = outbox.index("contacts", "c1", {})
    relays.start()
    until(lambda: outbox.state(first) == "done", "a row is delivered")
    assert relays.call("pause", "--index", "contacts", "--reason", "import").returncode == 0
    held, free = outbox.index("contacts", "c2", {}), outbox.index("deals", "d1", {})
    until(lambda: outbox.state(free) == "done", "another index flows")
    relays.end()
    relays.start()
    free = outbox.index("deals", "d2", {})
    until(lambda: outbox.state(free) == "done", "another index flows")
    assert outbox.state(held) == "pending"
    relays.call("resume", "--index", "contacts")
    until(lambda: outbox.state(held) == "done", "what was held is delivered")
