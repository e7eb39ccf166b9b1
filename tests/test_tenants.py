"""A tenant is removed: all of it, and nothing of another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from outbox import EntityRegistry, InvalidName, OutboxError, OutboxRepository, tenants
from outbox.cli import main
from outbox.destinations.embedded.destination import EmbeddedDestination
from outbox.errors import DestinationError
from outbox.relay.relay import Relay
from outbox.relay.requests import Request
from outbox.store import audit, claims
from outbox.store.models import now_ms
from tests.support.models import Base, Contact
from tests.support.outbox import Outbox
from tests.support.relays import Relays


def registered(tenancy: str) -> EntityRegistry:
    made = EntityRegistry()
    made.add(Contact, index="contacts", fields=["name"], tenant="tenant", tenancy=tenancy)
    return made


def write(outbox: Outbox, registry: EntityRegistry) -> None:
    """Two contacts of acme, one of acme-2."""
    Base.metadata.create_all(outbox.engine)
    with outbox.sessions.begin() as session:
        for number, tenant in ((1, "acme"), (2, "acme"), (3, "acme-2")):
            session.add(contact := Contact(id=number, name="Ada", tenant=tenant))
            OutboxRepository(session, registry).refresh(contact)


def deliver(outbox: Outbox, embedded: EmbeddedDestination, registry: EntityRegistry) -> None:
    relay = outbox.relay(embedded, registry=registry)
    while relay.run_once():
        pass


def found(embedded: EmbeddedDestination, *names: str) -> list[str]:
    return sorted(id_ for name in names for page in embedded.pages(name, 100) for id_ in page)


@pytest.mark.parametrize(("tenancy", "left"), [("shared", ["3"]), ("prefixed", ["6:acme-2:3"])])
def test_documents_in_a_shared_index_go_and_those_of_others_stay(
    outbox: Outbox, embedded: EmbeddedDestination, tenancy: str, left: list[str]
) -> None:
    registry = registered(tenancy)
    write(outbox, registry)
    deliver(outbox, embedded, registry)
    held = tenants.holdings(outbox.store(), embedded, registry, "acme")
    assert (held.rows, held.own_indexes, {name: len(ids) for name, ids in held.documents.items()}) == (
        2, [], {"contacts": 2}
    )  # fmt: skip
    assert tenants.drop(outbox.store(), embedded, held, "acme").deletes == 2
    deliver(outbox, embedded, registry)
    assert found(embedded, "contacts") == left
    assert [row["action"] for row in outbox.store().events() if row["tenant_id"] == "acme"] == ["delete", "delete"]


def test_index_of_its_own_goes_and_that_of_another_with_its_name_in_front_stays(
    outbox: Outbox, embedded: EmbeddedDestination
) -> None:
    registry = registered("index")
    write(outbox, registry)
    deliver(outbox, embedded, registry)
    held = tenants.holdings(outbox.store(), embedded, registry, "acme")
    assert (held.own_indexes, held.documents) == (["acme_contacts"], {})
    tenants.drop(outbox.store(), embedded, held, "acme")
    assert found(embedded, "acme_contacts", "acme-2_contacts") == ["3"]
    assert list(outbox.store().targets()) == ["acme-2_contacts"]


def test_index_that_cannot_be_removed_is_found_by_the_next_run(
    outbox: Outbox, embedded: EmbeddedDestination, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = registered("index")
    write(outbox, registry)
    deliver(outbox, embedded, registry)
    with monkeypatch.context() as patched:

        def refused(target: str) -> None:
            raise DestinationError(f"index {target} is being snapshotted")

        patched.setattr(embedded, "drop_index", refused)
        held = tenants.holdings(outbox.store(), embedded, registry, "acme")
        with pytest.raises(DestinationError):
            tenants.drop(outbox.store(), embedded, held, "acme")
    held = tenants.holdings(outbox.store(), embedded, registry, "acme")
    assert held.own_indexes == ["acme_contacts"]
    tenants.drop(outbox.store(), embedded, held, "acme")
    assert found(embedded, "acme_contacts", "acme-2_contacts") == ["3"]


def test_index_that_a_relay_delivers_to_is_not_removed_under_it(outbox: Outbox, embedded: EmbeddedDestination) -> None:
    registry = registered("index")
    write(outbox, registry)
    deliver(outbox, embedded, registry)
    outbox.put_raw("acme_contacts", "1", '{"name":"late"}')
    held = tenants.holdings(outbox.store(), embedded, registry, "acme")
    claim = claims.claim(
        outbox.store(),
        claims.ClaimRequest(relay=1, now=now_ms(), lease_ms=60_000, longest_wait=60_000, rows=10, bytes_=10**6),
    )
    assert claim
    with pytest.raises(OutboxError, match="acme_contacts was not removed: a relay still delivers"):
        tenants.drop(outbox.store(), embedded, held, "acme", timeout=0)
    assert found(embedded, "acme_contacts") == ["1", "2"]


def test_row_in_the_hands_of_a_relay_brings_nothing_back(outbox: Outbox, embedded: EmbeddedDestination) -> None:
    outbox.index("contacts", "c1", {"tenantId": "acme"}, tenant_id="acme")
    outbox.drain(embedded)
    outbox.index("contacts", "c1", {"tenantId": "acme", "late": True}, tenant_id="acme")
    slow = outbox.relay(embedded)
    request = slow._next_request(now_ms())
    assert request is not None
    store = outbox.store()
    tenants.drop(store, embedded, tenants.holdings(store, embedded, None, "acme"), "acme")
    outbox.drain(embedded)  # the delete waits behind the row that is under way
    slow._settle(slow._send(request), now_ms())
    outbox.drain(embedded)
    assert found(embedded, "contacts") == []


def finish(relay: Relay, request: Request | None) -> None:
    """Send what a relay has in its hands, and what has to follow it: the first request of an index asks where it is."""
    assert request is not None
    for following in relay._settle(relay._send(request), now_ms()):
        finish(relay, following)


@pytest.mark.parametrize("known", [True, False])
def test_row_that_a_relay_takes_while_the_command_asks_is_said_to_be_left_and_brings_nothing_back(
    outbox: Outbox, embedded: EmbeddedDestination, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, known: bool
) -> None:
    if known:
        outbox.index("contacts", "c0", {}, tenant_id="other")
        outbox.drain(embedded)
    outbox.index("contacts", "c1", {"tenantId": "acme"}, tenant_id="acme")
    slow, started = outbox.relay(embedded), []

    def meanwhile(*_: object, **__: object) -> None:
        started.append(slow._next_request(now_ms()))
        outbox.index("contacts", "c2", {"tenantId": "acme"}, tenant_id="acme")

    monkeypatch.setattr("click.confirm", meanwhile)
    environment = {
        "OUTBOX_DATABASE_URL": outbox.url,
        "OUTBOX_DESTINATION": "embedded",
        "OUTBOX_EMBEDDED_PATH": str(tmp_path / "search.db"),
    }
    dropped = CliRunner().invoke(main, ["tenant", "drop", "acme"], env=environment)
    assert (dropped.exit_code, "1 row is removed" in dropped.stdout) == (1, True)
    assert "1 row was not removed, in the hands of a relay" in dropped.stderr
    assert "dropped: 1 row removed for good by" in dropped.stderr
    (noted,) = audit.newest(outbox.store(), 10)
    assert (noted["about"], noted["affected"]) == ("tenant=acme", 1)
    finish(slow, started[0])
    assert "c1" in found(embedded, "contacts")
    outbox.drain(embedded)
    assert found(embedded, "contacts") == (["c0"] if known else [])


def test_document_under_way_that_a_later_row_gives_to_another_tenant_stays(
    outbox: Outbox, embedded: EmbeddedDestination
) -> None:
    outbox.index("contacts", "c1", {"tenantId": "acme"}, tenant_id="acme")
    slow = outbox.relay(embedded)
    request = slow._next_request(now_ms())
    outbox.index("contacts", "c1", {"tenantId": "other"}, tenant_id="other")
    store = outbox.store()
    dropped = tenants.drop(store, embedded, tenants.holdings(store, embedded, None, "acme"), "acme")
    assert (dropped.rows, dropped.deletes, dropped.left) == (0, 0, 1)
    finish(slow, request)
    outbox.drain(embedded)
    assert found(embedded, "contacts") == ["c1"]


def test_index_of_its_own_that_a_first_row_is_just_making_is_waited_for(
    outbox: Outbox, embedded: EmbeddedDestination
) -> None:
    outbox.put_raw("acme_contacts", "1", '{"name":"Ada"}')
    outbox.raw("UPDATE outbox_events SET tenant_id = 'acme'")
    slow = outbox.relay(embedded)
    assert slow._next_request(now_ms()) is not None
    held = tenants.holdings(outbox.store(), embedded, registered("index"), "acme")
    with pytest.raises(OutboxError, match="acme_contacts was not removed: a relay still delivers"):
        tenants.drop(outbox.store(), embedded, held, "acme", timeout=0)
    assert outbox.counts()["pending"] == 0  # no delete row that would make the index anew


def test_document_that_is_another_tenants_by_now_stays(outbox: Outbox, embedded: EmbeddedDestination) -> None:
    for tenant in ("acme", "other"):
        outbox.index("contacts", "c1", {"tenantId": tenant}, tenant_id=tenant)
        outbox.drain(embedded)
    held = tenants.holdings(outbox.store(), embedded, None, "acme")
    assert (held.rows, held.documents) == (1, {})


@pytest.mark.parametrize("hostile", ["", "a\nb", "x" * 300])
def test_what_is_no_tenant_id_is_refused(outbox: Outbox, embedded: EmbeddedDestination, hostile: str) -> None:
    with pytest.raises(InvalidName):
        tenants.holdings(outbox.store(), embedded, None, hostile)


@pytest.mark.slow
def test_command_asks_and_says_what_goes(outbox: Outbox, embedded: EmbeddedDestination, tmp_path: Path) -> None:
    environment: dict[str, Any] = {
        "OUTBOX_DESTINATION": "embedded", "OUTBOX_EMBEDDED_PATH": str(tmp_path / "search.db")
    }  # fmt: skip
    relays = Relays(outbox, "http://127.0.0.1:9", tmp_path)
    outbox.index("contacts", "c1", {"tenantId": "acme"}, tenant_id="acme")
    outbox.drain(embedded)
    misspelt = relays.call("tenant", "drop", "amce", **environment)
    assert (misspelt.returncode, "there is no tenant 'amce'; there are acme\n" in misspelt.stderr) == (1, True)
    for arguments, code in ((["--dry-run"], 0), ([], 1)):
        asked = relays.call("tenant", "drop", "acme", *arguments, stdin="n\n", **environment)
        assert (asked.returncode, "1 document in index contacts" in asked.stdout) == (code, True)
        assert found(embedded, "contacts") == ["c1"]
    done = relays.call("tenant", "drop", "acme", "--yes", **environment)
    assert (done.returncode, "1 delete row waits for a relay" in done.stdout) == (0, True)
    assert "removed for good by" in done.stderr
    outbox.drain(embedded)
    assert found(embedded, "contacts") == []
