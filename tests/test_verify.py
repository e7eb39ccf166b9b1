"""Verification: what is not in the index as the database says is found, and nothing else; and it is put right."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from loguru import logger
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from outbox import EntityRegistry, OutboxRepository
from outbox.cli import main
from outbox.destinations.embedded.destination import EmbeddedDestination
from outbox.entities import loader
from outbox.errors import ConfigurationError, DestinationError
from outbox.maintenance.scheduler import Maintenance
from outbox.store.models import EPOCH_STEP
from outbox.store.store import Store
from outbox.verify import Checked, Drift, Verification
from tests.support.outbox import Outbox, settings
from tests.support.places import EmbeddedPlace, Place


class Base(DeclarativeBase):
    pass


class Contact(Base):
    __tablename__ = "contacts"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    phone: Mapped[str | None]
    tenant: Mapped[str] = mapped_column(default="t1")
    archived: Mapped[bool] = mapped_column(default=False)


class Deal(Base):
    __tablename__ = "deals"
    code: Mapped[str] = mapped_column(primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]


def present(contact: Any) -> bool:
    return not contact.archived


class Application:
    """Contacts in a database, their documents in a destination, and a relay that is called by hand."""

    def __init__(self, outbox: Outbox, place: Place, tenancy: str = "prefixed") -> None:
        Base.metadata.create_all(outbox.engine)
        self.outbox, self.place, self.destination = outbox, place, place.destination
        self.registry = EntityRegistry()
        self.registry.add(
            Contact, index="contacts", fields=["name", "phone"], tenant="tenant", tenancy=tenancy, when=present
        )
        self._relay = outbox.relay(self.destination, registry=self.registry)
        self._store = outbox.store()

    def save(self, *contacts: Contact | Deal, tell: bool = True) -> None:
        with self.outbox.sessions.begin() as session:
            for contact in contacts:
                merged = session.merge(contact)
                if tell:
                    OutboxRepository(session, self.registry).refresh(merged)

    def remove(self, number: int) -> None:
        """A row goes, and nobody tells the outbox."""
        with self.outbox.sessions.begin() as session:
            session.delete(session.get_one(Contact, number))

    def deliver(self) -> None:
        while self._relay.run_once():
            pass

    def verification(self, **options: Any) -> Verification:
        return Verification(self._store, self.destination, self.registry, **{"patience": 0, "page": 3, **options})

    def drifts(self, **options: Any) -> list[Drift]:
        """What a verification finds, in the order of ids."""
        found = [each for each in self.verification(**options).run() if isinstance(each, Drift)]
        return sorted(found, key=lambda drift: drift.document_id)

    def said(self, **options: Any) -> list[tuple[str, str]]:
        return [(str(drift.kind), drift.document_id) for drift in self.drifts(**options)]

    def repaired(self) -> list[tuple[str, str]]:
        """What is wrong still after a repair and its delivery."""
        self.drifts(repair=True)
        self.deliver()
        assert not self.outbox.dead()
        return self.said()


@pytest.fixture
def app(outbox: Outbox, place: Place) -> Application:
    """Ten contacts, all delivered."""
    made = Application(outbox, place)
    made.save(*(Contact(id=number, name=f"Ada {number}", phone=str(number)) for number in range(1, 11)))
    made.deliver()
    return made


def document(number: int, **changes: Any) -> dict[str, Any]:
    return {"name": f"Ada {number}", "phone": str(number), "tenantId": "t1", **changes}


def test_clean_index_has_nothing_to_report(app: Application) -> None:
    verification = app.verification()
    assert [each for each in verification.run() if isinstance(each, Drift)] == []
    totals = verification.totals
    assert (totals.documents, totals.listed, totals.drift, totals.in_flight, totals.repaired) == (10, 10, 0, 0, 0)


def test_document_removed_behind_its_back_is_found_and_repaired(app: Application) -> None:
    for _ in range(10):
        app.place.tamper("contacts", "2:t1:10", document(10))
    app.place.tamper("contacts", "2:t1:10", None)  # a delete has a version too: above that of the next rows by now
    app.place.tamper("contacts", "2:t1:3", None)
    drifts = app.drifts()
    assert [(drift.kind, drift.document_id, drift.tenant_id, drift.entity) for drift in drifts] == [
        ("missing", "2:t1:10", "t1", "contacts"), ("missing", "2:t1:3", "t1", "contacts")
    ]  # fmt: skip
    assert app.place.get("contacts", "2:t1:3") is None  # a look changes nothing
    assert app.repaired() == []
    assert app.place.get("contacts", "2:t1:10") == document(10)


def test_document_added_behind_its_back_is_found_and_repaired(app: Application) -> None:
    app.place.tamper("contacts", "2:t1:99", document(99))
    app.place.tamper("contacts", "by hand", {"name": "?"})
    app.place.tamper("contacts", "2:t1:03", document(3))  # of no row, whatever number it may be taken for
    assert app.said() == [("extra", "2:t1:03"), ("extra", "2:t1:99"), ("extra", "by hand")]
    assert app.repaired() == []
    assert len(app.place.documents("contacts")) == 10


def test_document_changed_behind_its_back_is_found_and_repaired(app: Application) -> None:
    for _ in range(30):  # by now its version is above that of any row
        app.place.tamper("contacts", "2:t1:4", document(4, name="Eve", phone=None))
    (drift,) = app.drifts()
    assert (drift.kind, drift.document_id, drift.fields) == ("different", "2:t1:4", ("name", "phone"))
    assert drift.version == app.place.version("contacts", "2:t1:4")
    assert app.repaired() == []
    assert app.place.get("contacts", "2:t1:4") == document(4)


@pytest.mark.parametrize("changed", [{"phone": 4}, {"phone": "4", "more": None}, {"phone": ["4"]}])
def test_document_that_a_search_would_take_for_the_same_differs(app: Application, changed: dict[str, Any]) -> None:
    app.place.tamper("contacts", "2:t1:4", document(4, **changed))
    assert app.said() == [("different", "2:t1:4")]


def test_order_of_fields_makes_no_difference(app: Application) -> None:
    app.place.tamper("contacts", "2:t1:4", dict(reversed(document(4).items())))
    app.save(*(Contact(id=number, name="x") for number in range(11, 30)))  # versions above that one
    app.deliver()
    assert app.said() == []


@pytest.mark.parametrize(
    "raised",
    [EPOCH_STEP + 5_000, 2 * EPOCH_STEP - 1, 2 * EPOCH_STEP + 1, 7 * EPOCH_STEP],
    ids=["a bit", "all", "2", "7"],
)
def test_version_raised_by_hand_is_found_and_repaired(app: Application, raised: int) -> None:
    app.place.tamper("contacts", "2:t1:4", document(4), version=raised)
    app.place.tamper("contacts", "2:t1:5", document(5, name="Eve"), version=raised)
    app.place.tamper("contacts", "2:t1:99", document(99), version=raised)
    app.place.tamper("contacts", "2:t1:6", None, version=raised)
    assert app.said() == [
        ("version", "2:t1:4"), ("different", "2:t1:5"), ("missing", "2:t1:6"), ("extra", "2:t1:99")
    ]  # fmt: skip
    assert app.repaired() == []
    assert app.place.get("contacts", "2:t1:5") == document(5)
    app.save(Contact(id=4, name="Ada 4", phone="new"))
    app.deliver()
    assert app.said() == []
    assert app.outbox.store().highest_id() < EPOCH_STEP // 2  # ids must never reach the next epoch's


def test_row_changed_without_a_word_to_the_outbox_is_found_and_repaired(app: Application) -> None:
    app.save(Contact(id=2, name="Grace", phone="2"), Contact(id=11, name="New"), tell=False)
    app.remove(3)
    assert app.said() == [("missing", "2:t1:11"), ("different", "2:t1:2"), ("extra", "2:t1:3")]
    assert app.repaired() == []


def test_document_of_a_row_that_when_excludes_is_extra(app: Application) -> None:
    app.save(Contact(id=2, name="Ada 2", phone="2", archived=True), tell=False)
    app.save(Contact(id=11, name="never", archived=True), tell=False)
    assert app.said() == [("extra", "2:t1:2")]
    assert app.repaired() == []


def test_documents_with_rows_on_their_way_are_not_reported(app: Application) -> None:
    app.save(Contact(id=2, name="Grace", phone="2"), Contact(id=11, name="New"))
    app.place.tamper("contacts", "2:t1:4", None)
    verification = app.verification()
    found = [each.document_id for each in verification.run() if isinstance(each, Drift)]
    assert (found, verification.totals.in_flight) == (["2:t1:4"], 2)
    app.deliver()
    assert app.said() == [("missing", "2:t1:4")]


def test_documents_whose_rows_are_claimed_or_wait_for_a_retry_are_not_reported(app: Application) -> None:
    app.save(Contact(id=2, name="Grace", phone="2"), Contact(id=3, name="Grace", phone="3"))
    app.outbox.raw("UPDATE outbox_events SET state = 'claimed', available_at = 1 WHERE document_id = '2:t1:2'")
    app.outbox.raw(
        "UPDATE outbox_events SET available_at = 9999999999999 WHERE document_id = '2:t1:3' AND state = 'pending'"
    )
    verification = app.verification()
    assert [each for each in verification.run() if isinstance(each, Drift)] == []
    assert verification.totals.in_flight == 2


def test_document_in_flight_is_looked_at_again_in_the_end(app: Application) -> None:
    app.save(Contact(id=2, name="Grace", phone="2"), Contact(id=3, name="Grace", phone="3"))
    verification = app.verification()
    found = []
    for at, each in enumerate(verification.run()):
        if at == 0:
            app.deliver()
            app.place.tamper("contacts", "2:t1:3", document(3, name="Eve"))
        found += [each.document_id] if isinstance(each, Drift) else []
    assert (found, verification.totals.in_flight) == (["2:t1:3"], 0)


@pytest.mark.parametrize("moment", ["loaded", "read"])
def test_document_that_changes_between_the_look_at_one_side_and_at_the_other_is_not_reported(
    app: Application, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However often: each look at a page finds that both sides have moved on."""
    verification = app.verification()
    changes: list[str] = []
    delivering = False

    def meanwhile(look: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **options: Any) -> Any:
            nonlocal delivering
            seen = look(*arguments, **options)
            if not delivering:  # the relay loads and reads too
                delivering = True
                changes.append(f"Ada {len(changes)}")
                app.save(*(Contact(id=number, name=changes[-1], phone="1") for number in range(1, 11)))
                app.deliver()
                delivering = False
            return seen

        return wrapped

    if moment == "loaded":
        for name in ("load_rows", "load_places"):
            monkeypatch.setattr(loader, name, meanwhile(getattr(loader, name)))
    else:
        monkeypatch.setattr(app.destination, "read", meanwhile(app.destination.read))
    assert [each for each in verification.run() if isinstance(each, Drift)] == []
    assert len(changes) >= 4


def test_row_and_document_that_go_while_the_index_is_listed_are_not_reported(
    app: Application, monkeypatch: pytest.MonkeyPatch
) -> None:
    pages = app.destination.pages

    def then_gone(*arguments: Any, **options: Any) -> Iterator[Any]:
        for page in pages(*arguments, **options):
            with app.outbox.sessions.begin() as session:
                for contact in session.query(Contact):
                    OutboxRepository(session, app.registry).refresh(contact)
                    session.delete(contact)
            app.deliver()
            yield page

    monkeypatch.setattr(app.destination, "pages", then_gone)
    assert app.said() == []


@pytest.mark.parametrize("tenancy", ["shared", "prefixed", "index"])
def test_copy_of_a_tenant_that_a_row_has_left_is_found_and_repaired(outbox: Outbox, place: Place, tenancy: str) -> None:
    app = Application(outbox, place, tenancy)
    app.save(*(Contact(id=number, name="Ada", tenant=f"t{number % 2}") for number in range(6)))
    app.deliver()
    assert app.said() == []
    app.save(Contact(id=3, name="Ada", tenant="t0"), tell=False)
    found = {(drift.kind, drift.index, drift.document_id, drift.tenant_id) for drift in app.drifts()}
    assert (
        found
        == {
            "shared": {("different", "contacts", "3", "t0")},
            "prefixed": {("extra", "contacts", "2:t1:3", "t1"), ("missing", "contacts", "2:t0:3", "t0")},
            "index": {("extra", "t1_contacts", "3", "t1"), ("missing", "t0_contacts", "3", "t0")},
        }[tenancy]
    )
    of_one = {(drift.kind, drift.index) for drift in app.drifts(tenant_id="t1")}
    assert (
        of_one
        == {
            "shared": {("different", "contacts")},
            "prefixed": {("extra", "contacts")},
            "index": {("extra", "t1_contacts")},
        }[tenancy]
    )
    assert app.said(tenant_id="t2") == []
    listed = {each.name for each in app.verification(tenant_id="t1").run() if isinstance(each, Checked)}
    assert listed == ({"contacts", "t1_contacts"} if tenancy == "index" else {"contacts"})
    assert app.repaired() == []


def test_last_document_of_a_tenant_with_an_index_of_its_own_is_found(outbox: Outbox, place: Place) -> None:
    app = Application(outbox, place, "index")
    app.save(Contact(id=1, name="Ada", tenant="t1"), Contact(id=2, name="Ada", tenant="t2"))
    app.deliver()
    app.remove(2)
    assert [(drift.kind, drift.index) for drift in app.drifts()] == [("extra", "t2_contacts")]
    assert app.repaired() == []


def test_entities_that_share_an_index_are_not_extra_to_each_other(app: Application) -> None:
    app.registry.add(Deal, index="contacts", fields=["name"])
    app.save(*(Deal(code="a|b", number=number, name="big") for number in range(5)))
    app.deliver()
    assert (app.said(), app.said(entities=["deals"]), app.said(entities=["contacts"])) == ([], [], [])
    app.place.tamper("contacts", r"a\|b|3", {"name": "small"})
    app.place.tamper("contacts", r"a\|b|9", {"name": "new"})
    app.place.tamper("contacts", "2:t1:3", None)
    assert app.said(entities=["deals"]) == [("different", r"a\|b|3"), ("extra", r"a\|b|9")]
    assert {(drift.entity, drift.kind) for drift in app.drifts()} == {
        ("deals", "different"), ("deals", "extra"), ("contacts", "missing")
    }  # fmt: skip
    assert app.repaired() == []


def test_index_that_is_not_there_misses_everything_and_is_filled_by_the_repair(outbox: Outbox, place: Place) -> None:
    app = Application(outbox, place)
    app.save(*(Contact(id=number, name="Ada") for number in range(1, 8)), tell=False)
    assert [kind for kind, _ in app.said()] == ["missing"] * 7
    assert app.repaired() == []
    assert len(place.documents("contacts")) == 7


def test_index_that_a_relay_makes_meanwhile_is_not_missing(outbox: Outbox, place: Place) -> None:
    app = Application(outbox, place)
    app.save(*(Contact(id=number, name="Ada") for number in range(1, 8)))
    verification = app.verification()
    found = []
    for at, each in enumerate(verification.run()):
        if at == 0:
            app.deliver()
        found += [each] if isinstance(each, Drift) else []
    assert (found, verification.totals.in_flight) == ([], 0)


def test_document_that_cannot_be_made_is_said_and_its_rows_are_left_alone(app: Application) -> None:
    def to_document(contact: Contact) -> dict[str, Any]:
        if contact.id == 2:
            raise KeyError("no such price list")
        return {"name": contact.name, "phone": contact.phone}

    app.registry = EntityRegistry()
    app.registry.add(Contact, index="contacts", to_document=to_document, tenant="tenant", tenancy="prefixed")
    rows = sum(app.outbox.counts().values())
    (drift,) = app.drifts(repair=True)
    assert (drift.kind, drift.document_id, "no such price list" in str(drift.error)) == ("failed", "2:t1:2", True)
    assert sum(app.outbox.counts().values()) == rows


def test_numbers_are_compared_to_the_last_digit_and_with_their_type(outbox: Outbox, place: Place) -> None:
    app = Application(outbox, place)
    app.registry = EntityRegistry()
    app.registry.add(
        Contact,
        index="contacts",
        to_document=lambda each: {"n": Decimal(f"1234567890123456789012{each.id}"), "one": 1},
        mappings={"properties": {"n": {"type": "keyword"}, "one": {"type": "keyword"}}},
    )
    app._relay = outbox.relay(place.destination, registry=app.registry)
    app.save(Contact(id=1, name="Ada"), Contact(id=2, name="Ada"))
    app.deliver()
    assert app.said() == []
    number = 12345678901234567890121
    for document_ in ({"n": number + 1, "one": 1}, {"n": number, "one": True}, {"n": number, "one": 1.0}):
        place.tamper("contacts", "1", document_)
        assert app.said() == [("different", "1")]


def test_sample_looks_at_about_that_part_of_both_sides(app: Application) -> None:
    app.save(*(Contact(id=number, name="Ada", phone="1") for number in range(11, 511)))
    app.deliver()
    verification = app.verification(sample=0.25, page=100)
    list(verification.run())
    assert 60 <= verification.totals.documents <= 220
    assert 60 <= verification.totals.listed <= 220
    found: set[str] = set()
    app.place.tamper("contacts", "2:t1:4", None)
    for _ in range(200):
        found |= {each for _, each in app.said(sample=0.25, page=100)}
        if found:
            break
    assert found == {"2:t1:4"}


def test_what_cannot_be_verified_is_said(app: Application) -> None:
    app.registry.add(Deal, index="deals", fields=["name"])
    with pytest.raises(ConfigurationError, match="did you mean 'contacts'"):
        app.verification(entities=["contact"])
    with pytest.raises(ConfigurationError, match="has no tenants"):
        app.verification(entities=["deals"], tenant_id="t1")
    with pytest.raises(ConfigurationError, match="sample"):
        app.verification(sample=0.0001)
    assert app.said(tenant_id="t1") == []


@pytest.mark.elasticsearch
@pytest.mark.parametrize("place", ["elasticsearch"], indirect=True)
def test_index_that_cannot_be_read_is_not_taken_for_an_empty_one(app: Application, clean_node: Any) -> None:
    clean_node.request("POST", "/contacts-000001/_close")
    rows = sum(app.outbox.counts().values())
    with pytest.raises(DestinationError, match="closed"):
        app.drifts(repair=True)
    assert sum(app.outbox.counts().values()) == rows
    clean_node.request("POST", "/contacts-000001/_open")
    clean_node.request("PUT", "/elsewhere", {"aliases": {"contacts": {}}})
    with pytest.raises(DestinationError, match="points to 2 indexes"):
        app.drifts()


# -- the command, the schedule, and what is remembered ---------------------------------------------------------------

REGISTRY = EntityRegistry()  # for commands
REGISTRY.add(Contact, index="contacts", fields=["name", "phone"], tenant="tenant", tenancy="prefixed", when=present)

Call = Callable[..., Result]


@pytest.fixture
def filed(outbox: Outbox, tmp_path: Path) -> Iterator[Application]:
    """The same ten contacts, in a file of the embedded destination."""
    place = EmbeddedPlace(tmp_path / "search.db")
    made = Application(outbox, place)
    made.save(*(Contact(id=number, name=f"Ada {number}", phone=str(number)) for number in range(1, 11)))
    made.deliver()
    yield made
    place.destination.close()


@pytest.fixture
def call(filed: Application, tmp_path: Path) -> Call:
    def run(*arguments: str, **environment: str | None) -> Result:
        given = {
            "OUTBOX_DATABASE_URL": f"sqlite:///{filed.outbox.engine.url.database}",
            "OUTBOX_DESTINATION": "embedded",
            "OUTBOX_EMBEDDED_PATH": str(tmp_path / "search.db"),
            "OUTBOX_ENTITIES": "tests.test_verify:REGISTRY",
        }
        return CliRunner().invoke(main, arguments, env=given | environment)

    return run


def test_command_says_what_is_wrong_and_exits_1_or_that_nothing_is_and_exits_0(filed: Application, call: Call) -> None:
    clean = call("verify")
    assert (clean.exit_code, "10 documents of the database and 10 of the index" in clean.stdout) == (0, True)
    assert "no drift" in clean.stdout
    filed.place.tamper("contacts", "2:t1:4", document(4, name="Eve"))
    filed.place.tamper("contacts", "no\nline of its own", {})
    found = call("verify")
    assert found.exit_code == 1
    assert "different  contacts/2:t1:4  tenant t1  differs in name" in found.stdout.splitlines()
    assert r"extra      contacts/no\nline of its own" in found.stdout.splitlines()
    assert "1 different, 1 extra" in found.stdout
    assert "verify --repair" in found.stdout
    repaired = call("verify", "--repair")
    assert (repaired.exit_code, "2 rows are written" in repaired.stdout) == (1, True)
    filed.deliver()
    assert call("verify").exit_code == 0
    filed.save(Contact(id=5, name="Grace"))
    moving = call("verify")
    assert (moving.exit_code, "no drift in what could be judged" in moving.stdout) == (0, True)
    assert "1 not judged" in moving.stdout


def test_index_that_is_of_no_entity_does_not_pass_for_compared(filed: Application, call: Call) -> None:
    filed.outbox.index("letters", "1", {})
    filed.deliver()
    says = "index letters has no registered entity and is not compared"
    result = call("verify")
    assert (result.exit_code, result.stderr.splitlines()) == (0, [says])
    assert says not in call("verify", "--entity", "contacts").stderr


def test_command_prints_a_line_of_json_for_each_document_and_one_of_totals(filed: Application, call: Call) -> None:
    filed.place.tamper("contacts", "2:t1:4", None)
    result = call("verify", "--json", "--tenant", "t1", "--entity", "contacts")
    *drifts, totals = map(json.loads, result.stdout.splitlines())
    (drift,) = drifts
    assert {name: drift[name] for name in ("kind", "entity", "index", "id", "tenant")} == {
        "kind": "missing", "entity": "contacts", "index": "contacts", "id": "2:t1:4", "tenant": "t1"
    }  # fmt: skip
    assert (totals["kind"], totals["documents"], totals["drift"], totals["missing"]) == ("totals", 10, 1, 1)
    assert result.exit_code == 1


@pytest.mark.parametrize(
    ("arguments", "environment", "says"),
    [
        (["--entity", "contact"], {}, "did you mean 'contacts'"),
        (["--sample", "0"], {}, "between 0.1% and 100%"),
        (["--sample", "half"], {}, "no percentage"),
        ([], {"OUTBOX_ENTITIES": None}, "set OUTBOX_ENTITIES"),
        ([], {"OUTBOX_VERIFY_SCHEDULE": "at noon"}, "OUTBOX_VERIFY_SCHEDULE"),
    ],
)
@pytest.mark.usefixtures("filed")
def test_wrong_usage_exits_2(call: Call, arguments: list[str], environment: dict[str, str | None], says: str) -> None:
    result = call("verify", *arguments, **environment)
    assert (result.exit_code, says in result.stderr) == (2, True)


def test_status_shows_the_last_verification_and_why_one_did_not_come_to_its_end(
    filed: Application, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert json.loads(call("status", "--json").stdout)["verification"] is None
    filed.place.tamper("contacts", "2:t1:4", None)
    call("verify")
    facts = json.loads(call("status", "--json").stdout)["verification"]
    assert {name: facts[name] for name in ("entities", "documents", "drift", "missing", "sample", "error")} == {
        "entities": ["contacts"], "documents": 10, "drift": 1, "missing": 1, "sample": 1.0, "error": None
    }  # fmt: skip
    assert "DRIFT in contacts at " in call("status").stdout
    call("verify", "--repair")
    filed.deliver()
    assert "1 row written to repair it" in call("status").stdout
    call("verify", "--tenant", "t1")
    assert "verified contacts of tenant t1 at " in call("status").stdout

    def away(*_: Any, **__: Any) -> Any:
        raise DestinationError("it is away")

    monkeypatch.setattr(EmbeddedDestination, "pages", away)
    assert call("verify").exit_code == 1
    assert "NOT VERIFIED: contacts" in (text := call("status").stdout)
    assert "it is away" in text


def test_only_the_newest_hundred_verifications_are_kept(filed: Application) -> None:
    for _ in range(105):
        list(filed.verification(entities=["contacts"], tenant_id="nobody").recorded("me"))
    with filed.outbox.engine.connect() as connection:
        assert connection.exec_driver_sql("SELECT count(*) FROM outbox_verifications").scalar_one() == 100


def scheduled(app: Application, relay: int, **options: Any) -> Maintenance:
    """A relay's jobs, called by hand."""

    def verification(store: Store) -> Verification:
        return Verification(store, app.destination, app.registry, patience=0, **options)

    return Maintenance(app.outbox.engine, relay, settings(verify_schedule="0 3 * * *"), list, verification)


def test_scheduled_verification_is_done_by_one_of_the_relays_and_says_what_is_wrong(
    filed: Application, call: Call
) -> None:
    lines: list[str] = []
    logger.add(lines.append, format="{level} {message}")
    filed.place.tamper("contacts", "2:t1:4", None)
    for relay in (1, 2, 3):
        scheduled(filed, relay).verify()
    assert [line.strip() for line in lines] == [
        "ERROR a sample of the documents differs from the database: 1 missing; see 'outbox-relay verify'"
    ]
    assert json.loads(call("status", "--json").stdout)["verification"]["by"] == "relay 1"
    filed.outbox.raw("UPDATE outbox_verifications SET started_at = started_at - 60000")  # a minute later
    scheduled(filed, 2).verify()
    assert json.loads(call("status", "--json").stdout)["verification"]["by"] == "relay 2"


def test_scheduled_verification_stands_on_a_thread_of_its_own_at_its_hours(filed: Application) -> None:
    maintenance = scheduled(filed, 1)
    (job,) = [each for each in maintenance._scheduler.get_jobs() if each.id == "verify"]
    assert (job.executor, str(job.trigger)) == (
        "verify",
        "or[cron[month='*', day='*', day_of_week='*', hour='3', minute='0']]",
    )


def test_relay_that_stops_gives_a_verification_up(filed: Application, call: Call) -> None:
    maintenance = scheduled(filed, 1, page=1)
    maintenance.stop()
    maintenance.verify()
    facts = json.loads(call("status", "--json").stdout)["verification"]
    assert (facts["error"], facts["documents"]) == ("stopped before its end", 1)


def test_schedule_without_entities_is_refused_at_the_start(call: Call) -> None:
    result = call("run", "--drain", OUTBOX_ENTITIES=None, OUTBOX_VERIFY_SCHEDULE="0 3 * * *")
    assert (result.exit_code, "set OUTBOX_ENTITIES" in result.stderr) == (2, True)
