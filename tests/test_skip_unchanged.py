"""Entities with `skip_unchanged`: what the index holds already is not written; what could undo that is."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import QueuePool

from outbox import OutboxRepository
from outbox.destinations.base import Operation
from outbox.relay import decide
from outbox.store import claims, operators, outcomes, upkeep, versions
from outbox.store.models import RELAY_DIED, now_ms
from tests.support.models import Contact
from tests.support.outbox import Outbox
from tests.support.places import Place
from tests.support.touching import LEASE_MS, RELAY, TARGET, Touched


@pytest.fixture
def app(outbox: Outbox, place: Place) -> Iterator[Touched]:
    """One contact, A, which was delivered."""
    made = Touched(outbox, place)
    made.save(1, "A")
    made.deliver()
    yield made
    made.close()


def test_document_that_the_index_holds_is_not_written_again(app: Touched, place: Place) -> None:
    held = place.version("contacts", "1")
    unchanged = [app.touch() for _ in range(2)]
    app.deliver()
    assert app.ends(*unchanged) == ["coalesced", "unchanged"]
    assert [app.outbox.row(row)["deliveries"] for row in unchanged] == [0, 0]  # nothing was sent
    again = app.touch()
    app.deliver()
    assert (app.ends(again), place.version("contacts", "1")) == (["unchanged"], held)
    changed = app.wrote("B")
    app.deliver()
    assert (app.ends(changed), app.name_held()) == (["applied"], "B")
    assert place.version("contacts", "1") == app.outbox.row(changed)["version"]


def test_row_that_was_sent_before_is_sent_again_since_the_first_request_may_come_late(app: Touched) -> None:
    app.wrote("B")
    late = app.relay_dies()
    last = app.wrote("A")
    app.lease_ends()
    app.deliver()
    app.arrives(late)
    assert (app.ends(last), app.name_held()) == (["applied"], "A")


def test_relay_that_is_killed_leaves_no_connection_open(app: Touched) -> None:
    """An engine has fifteen and has the next one wait for half a minute; a history may have more of such relays."""
    pool = app.outbox.engine.pool
    assert isinstance(pool, QueuePool)
    before = pool.checkedout()
    assert not app.relay_dies()  # there was nothing to take
    app.wrote("B")
    assert app.relay_dies()
    assert pool.checkedout() == before


def test_request_of_a_row_that_died_does_not_come_between(app: Touched) -> None:
    died = app.wrote("B")
    late = app.relay_dies()
    app.outbox.raw(
        "UPDATE outbox_events SET state = 'dead', claim_token = NULL, claimed_by = NULL, lease_expires_at = NULL,"
        " error_type = 'poison', error = 'it got no answer', finished_at = 1 WHERE id = :id",
        id=died,
    )
    last = app.wrote("A")
    app.deliver()
    app.arrives(late)
    assert (app.ends(last), app.name_held()) == (["applied"], "A")
    again = app.touch()  # by now the index is above it
    app.deliver()
    assert app.ends(again) == ["unchanged"]


@pytest.mark.parametrize("how", ["purged", "discarded"])
def test_request_of_a_row_that_is_gone_does_not_come_between(app: Touched, how: str) -> None:
    gone = app.wrote("B")
    late = app.relay_dies()
    app.lease_ends()
    if how == "purged":
        assert operators.purge(app.store, [gone]) == 1
    else:
        app.outbox.raw("UPDATE outbox_events SET state = 'dead', finished_at = 1 WHERE id = :id", id=gone)
        assert operators.discard_dead(app.store, [gone]) == 1
    last = app.wrote("A")
    app.deliver()
    app.arrives(late)
    assert (app.ends(last), app.name_held()) == (["applied"], "A")


def test_second_request_of_rows_that_are_gone_does_not_come_between(app: Touched) -> None:
    gone = [app.wrote("B")]
    first = app.relay_dies()
    app.lease_ends()
    gone.append(app.wrote("C"))
    late = app.relay_dies()
    app.lease_ends()
    assert operators.purge(app.store, gone) == 2
    app.arrives(first)
    last = app.wrote("B")
    app.deliver()
    app.arrives(late)
    assert (app.ends(last), app.name_held()) == (["applied"], "B")


@pytest.mark.parametrize("kills", [False, True], ids=["gets no answer", "kills its relay"])
def test_second_request_of_a_row_that_died_as_poison_does_not_come_between(app: Touched, kills: bool) -> None:
    died = app.wrote("B")
    first = app.relay_dies()
    app.lease_ends()
    app.outbox.raw("UPDATE contacts SET name = 'C'")
    late = app.relay_dies()
    if kills:
        app.outbox.raw(
            "UPDATE outbox_events SET error_type = :found, deliveries = 12 WHERE id = :id", found=RELAY_DIED, id=died
        )
        assert upkeep.reap(app.store, app.now, LEASE_MS, dead_relays=[RELAY]).dead == 1
    else:
        app.lease_ends()
        claim = claims.claim(app.store, app.request())
        assert claim
        assert not outcomes.record(app.store, claim, [decide.poisoned(claim, 10)], app.now)
    app.arrives(first)
    last = app.wrote("B")
    app.deliver()
    app.arrives(late)
    assert (app.outbox.row(died)["state"], app.ends(last), app.name_held()) == ("dead", ["applied"], "B")


def test_row_whose_own_older_rows_were_pruned_is_skipped_still(app: Touched) -> None:
    with app.store.write(durable=False):
        assert versions.remove(app.store, [app.newest_row()]) == 1
    unchanged = app.touch()
    app.deliver()
    assert app.ends(unchanged) == ["unchanged"]


@pytest.mark.parametrize("state", ["running", "cancelled", "failed", "done"])
@pytest.mark.parametrize("above", [0, 1], ids=["its own document", "an older document"])
def test_documents_of_a_reindex_in_place_do_not_come_between(
    app: Touched, place: Place, state: str, above: int
) -> None:
    """Its process read B and was killed; its request is applied over its own version too."""
    held = place.version("contacts", "1")
    assert held is not None
    with app.store.write(durable=True):
        app.store.dialect.raise_tokens(app.store.run, held % 10**12 + above)
    app.outbox.raw(
        "INSERT INTO outbox_reindex_jobs (index_name, old_index, state, phase, watermark)"
        " VALUES ('contacts', :target, :state, 'scan', :watermark)",
        target=TARGET,
        state=state,
        watermark=held + above,
    )
    late = Operation(TARGET, TARGET, "1", held + above, b'{"name":"B"}', or_equal=True)
    rows = [app.wrote("B"), app.wrote("A")]
    app.deliver()
    app.arrives([late])
    assert (app.ends(*rows), app.name_held()) == (["coalesced", "applied"], "A")
    again = app.touch()
    app.deliver()
    assert app.ends(again) == ["unchanged"]


def test_index_that_a_reindex_fills_gets_what_the_live_one_holds(app: Touched, place: Place) -> None:
    place.destination.create_index("contacts-000002", {}, {})
    app.outbox.raw(
        "INSERT INTO outbox_indexes (index_name, physical_index, role) VALUES ('contacts', 'contacts-000002', 'new')"
    )
    unchanged = app.touch()
    app.deliver()
    assert app.ends(unchanged) == ["applied"]
    assert list(place.destination.read("contacts-000002", ["1"])) == ["1"]


def test_document_of_an_earlier_epoch_is_written_once(app: Touched, place: Place) -> None:
    """After a restore: the database knows nothing of rows that it has sent since its backup was made."""
    held = place.version("contacts", "1")
    assert held is not None
    late = Operation("contacts", TARGET, "1", held + 5, b'{"name":"B"}')
    operators.advance_epoch(app.store, 1, now_ms())
    rows = [app.touch()]
    app.deliver()
    app.arrives([late])
    rows.append(app.touch())
    app.deliver()
    assert (app.ends(*rows), app.name_held()) == (["applied", "unchanged"], "A")


def test_relay_killed_before_it_recorded_that_nothing_changed_leaves_the_row_to_be_written(
    app: Touched, place: Place
) -> None:
    row = app.touch()
    sleeper = app.another_relay()
    request = sleeper._next_request(app.now)
    assert request is not None
    answer = sleeper._send(request)
    app.lease_ends()
    app.deliver()
    sleeper._settle(answer, app.now)  # it was only asleep
    assert (app.ends(row), app.outbox.row(row)["deliveries"]) == (["applied"], 2)
    assert (app.name_held(), place.version("contacts", "1")) == ("A", app.outbox.row(row)["version"])


def test_document_that_is_gone_from_the_index_or_was_changed_there_is_written(app: Touched, place: Place) -> None:
    place.tamper("contacts", "1", {"name": "A", "tenantId": "t1", "more": 1})
    with app.store.write(durable=True):
        app.store.dialect.raise_tokens(app.store.run, 100)
    rows = [app.touch()]
    app.deliver()
    assert place.get("contacts", "1") == {"name": "A", "tenantId": "t1"}
    with app.sessions.begin() as session:
        session.delete(session.get_one(Contact, 1))
    app.deliver()
    app.save(1, "A")
    rows.append(app.newest_row())
    app.deliver()
    assert (app.ends(*rows), app.name_held()) == (["applied", "applied"], "A")


def test_rows_that_say_what_the_document_is_are_always_sent(app: Touched) -> None:
    """Whoever writes them knows nothing of the option; and a patch may be of what nobody has looked at."""
    with app.outbox.sessions.begin() as session:
        whole = OutboxRepository(session).index("contacts", "1", {"name": "A", "tenantId": "t1"})
    app.deliver()
    with app.outbox.sessions.begin() as session:
        patch = OutboxRepository(session).update("contacts", "1", {"name": "A"})
    app.deliver()
    with app.outbox.sessions.begin() as session:
        before = OutboxRepository(session).delete("contacts", "1")
    last = app.touch()
    app.deliver()
    foreign = app.outbox.put_raw("contacts", "1", '{"name":"A","tenantId":"t1"}')
    app.outbox.raw("UPDATE outbox_events SET entity = 'contacts' WHERE id = :id", id=foreign)
    app.deliver()
    ends = app.ends(whole or 0, patch or 0, before or 0, last, foreign)
    assert ends == ["applied", "applied", "coalesced", "applied", "applied"]


def test_rows_of_entities_without_it_are_always_sent(app: Touched) -> None:
    app.registry.add(Contact, name="cards", index="cards", fields=["name"])
    with app.sessions.begin() as session:
        rows = OutboxRepository(session, app.registry).refresh(session.get_one(Contact, 1))
    app.deliver()
    with app.sessions.begin() as session:
        rows = OutboxRepository(session, app.registry).refresh(session.get_one(Contact, 1))
    app.deliver()
    assert {app.outbox.row(row)["entity"]: app.outbox.outcome(row) for row in rows} == {
        "contacts": "unchanged",
        "cards": "applied",
    }


def test_what_was_not_written_is_counted_by_itself(app: Touched, said: list[str]) -> None:
    app.touch()
    app.deliver()
    with app.outbox.engine.connect() as connection:
        found = connection.exec_driver_sql("SELECT action, sum(done) FROM outbox_stats GROUP BY action ORDER BY action")
        assert [tuple(row) for row in found] == [("refresh", 1), ("unchanged", 1)]
    assert any("[ES] UNCHANGED contacts/1" in line for line in said)
