"""Verification: what is not in the index as the database says is found, and nothing else; and it is put right."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest

from outbox import EntityRegistry
from outbox.entities import loader
from outbox.errors import ConfigurationError, DestinationError, UnknownTenant
from outbox.store.models import EPOCH_STEP
from outbox.verify import Checked, Drift
from tests.support.models import Company, Contact
from tests.support.outbox import Outbox
from tests.support.places import Place
from tests.verify.world import Application, document


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
    with pytest.raises(UnknownTenant, match="there is no tenant 't2'; there are t0, t1"):
        app.said(tenant_id="t2")
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
    app.registry.add(Company, index="contacts", fields=["name"], id_prefix="company-")
    app.save(*(Company(code="a|b", region=number, name="big") for number in range(5)))
    app.deliver()
    assert (app.said(), app.said(entities=["companies"]), app.said(entities=["contacts"])) == ([], [], [])
    app.place.tamper("contacts", r"company-a\|b|3", {"name": "small"})
    app.place.tamper("contacts", r"company-a\|b|9", {"name": "new"})
    app.place.tamper("contacts", "2:t1:3", None)
    assert app.said(entities=["companies"]) == [("different", r"company-a\|b|3"), ("extra", r"company-a\|b|9")]
    assert {(drift.entity, drift.kind) for drift in app.drifts()} == {
        ("companies", "different"), ("companies", "extra"), ("contacts", "missing")
    }  # fmt: skip
    assert app.repaired() == []


def test_index_that_is_not_there_misses_everything_and_is_filled_by_the_repair(outbox: Outbox, place: Place) -> None:
    app = Application(outbox, place)
    app.save(*(Contact(id=number, name="Ada") for number in range(1, 8)), tell=False)
    assert [kind for kind, _ in app.said()] == ["missing"] * 7
    assert app.repaired() == []
    assert len(place.documents("contacts")) == 7


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


def test_documents_that_are_wrong_are_read_few_at_a_time(app: Application, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of a page may be hundreds of megabytes, on either side."""
    monkeypatch.setattr("outbox.verify.verification._LARGEST_READ", 1)  # each is larger than that
    monkeypatch.setattr("outbox.verify.verification.SUSPECTS_AT_ONCE", 2, raising=False)
    for number in range(1, 11):
        app.place.tamper("contacts", f"2:t1:{number}", None)
        app.place.tamper("contacts", f"2:t2:{number}", document(number))
    made: list[int] = []
    load_first = loader.load_first

    def spy(connection: Any, entities: Any, places: Any) -> Any:
        made.append(len(places))
        return load_first(connection, entities, places)

    monkeypatch.setattr(loader, "load_first", spy)
    assert len(app.said(page=100)) == 20
    assert made == [1] * 10 + [2] * 5


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
    app.registry.add(Company, index="companies", fields=["name"])
    with pytest.raises(ConfigurationError, match="did you mean 'contacts'"):
        app.verification(entities=["contact"])
    with pytest.raises(ConfigurationError, match="has no tenants"):
        app.verification(entities=["companies"], tenant_id="t1")
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
