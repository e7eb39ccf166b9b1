"""Verification under traffic: what is on its way, or changes while it is looked at, is not reported."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from outbox import OutboxRepository
from outbox.entities import loader
from outbox.verify import Drift
from tests.support.models import Contact
from tests.support.outbox import Outbox
from tests.support.places import Place
from tests.verify.world import Application, document


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
