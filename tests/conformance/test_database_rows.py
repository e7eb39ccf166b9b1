"""What becomes of rows, on every database: claims, leases, outcomes, and what operators and verification ask."""

from __future__ import annotations

import threading

from outbox.store import claims, conflicts, due, operators, outcomes, pauses, upkeep, verifications, versions
from outbox.store.models import (
    EPOCH_STEP,
    LATENCIES,
    POISON,
    RELAY_DIED,
    STATISTICS,
    UNANSWERED,
    Result,
    State,
    Transition,
)
from outbox.store.store import Store, dialect_of
from tests.conformance.database import (
    LEASE_MS,
    MINUTE,
    NOW,
    Database,
    applied,
    claim,
    claimed,
    ids_of,
    in_threads,
)

# -- claims -----------------------------------------------------------------------------------------------------


def test_row_is_claimed_once(database: Database, store: Store) -> None:
    ids = database.insert(("contacts", "c1"), ("contacts", "c2"))
    first = claimed(store)
    assert ids_of(first) == ids
    assert [event.deliveries for event in first.events] == [1, 1]
    assert claim(database.store(), relay=2) is None
    row = database.row(ids[0])
    assert (row["state"], row["claimed_by"], row["lease_expires_at"]) == ("claimed", 1, NOW + LEASE_MS)


def test_claim_has_the_documents_as_they_were_written(database: Database, store: Store) -> None:
    with database.engine.begin() as connection:
        documents = ['{"name": "é 漢 😀"}', '{"quote": "it\'s \\"so\\"", "percent": "5 %"}']
        rows = [("index", "contacts", f"c{n}", None, None, len(each), NOW) for n, each in enumerate(documents)]
        ids = dialect_of(connection).insert(connection, rows, documents)
    found = claims.load(store, claimed(store))
    assert {id_: bytes(each) for id_, each in found.items()} == {
        id_: each.encode() for id_, each in zip(ids, documents, strict=True)
    }


def test_later_row_of_a_document_waits_for_the_earlier_one_and_goes_when_it_is_done(
    database: Database, store: Store
) -> None:
    (first,) = database.insert(("contacts", "c1"))
    held = claimed(store)
    later, other = database.insert(("contacts", "c1"), ("contacts", "c2"))
    assert ids_of(claim(database.store(), relay=2)) == [other]
    assert ids_of(held) == [first]
    assert database.row(later)["available_at"] == NOW + LEASE_MS  # it takes over the time of its head
    assert outcomes.record(store, held, applied(held), NOW) == []
    assert ids_of(claim(store)) == [later]


def test_rows_of_a_document_are_claimed_together_in_order_and_without_a_gap(database: Database, store: Store) -> None:
    ids = database.insert(*[("contacts", "c1")] * 3)
    assert ids_of(claim(store, rows=2)) == ids[:2]
    assert claim(database.store(), relay=2) is None


def test_row_in_retry_holds_back_its_document_alone(database: Database, store: Store) -> None:
    first, _, other = database.insert(("contacts", "c1"), ("contacts", "c1"), ("contacts", "c2"))
    held = claimed(store, rows=1)
    failed = Transition(held.events[0], State.PENDING, available_at=NOW + 2_000, attempts=1, error_type="x", error="y")
    outcomes.record(store, held, [failed], NOW)
    assert ids_of(claim(store)) == [other]
    assert claim(store, now=NOW + 1_999) is None
    assert ids_of(claim(store, now=NOW + 2_000))[0] == first


def test_two_claimers_never_hold_one_document_and_deliver_it_in_order(database: Database) -> None:
    documents = [f"c{n % 12}" for n in range(240)]
    database.insert(*(("contacts", each) for each in documents), tenant="acme")
    held: set[str] = set()
    delivered: list[tuple[str, int]] = []
    lock = threading.Lock()

    def deliver(relay: int) -> None:
        store, idle = database.store(), 0
        while idle < 3:
            found = claim(store, relay=relay, now=NOW + idle, rows=7)
            if found is None:
                idle += 1
                continue
            names = {event.document_id for event in found.events}
            with lock:
                assert not names & held
                held.update(names)
            with lock:
                delivered.extend((event.document_id, event.id) for event in found.events)
                held.difference_update(names)
            assert outcomes.record(store, found, applied(found), NOW) == []

    in_threads((deliver, 1), (deliver, 2))
    in_threads((deliver, 3))  # what waited behind the last rows of the other when both gave up
    for each in set(documents):
        ids = [id_ for document, id_ in delivered if document == each]
        assert len(ids) == 20
        assert ids == sorted(ids)


def test_lanes_share_a_batch(database: Database, store: Store) -> None:
    database.insert(*(("contacts", f"a{n}") for n in range(50)), tenant="large")
    database.insert(("contacts", "b1"), ("notes", "b2"), tenant="small")
    database.insert(("contacts", "c1"))
    assert due.fresh_lanes(store) == [
        ("contacts", "large"),
        ("contacts", "small"),
        ("notes", "small"),
        ("contacts", ""),
    ]
    found = claimed(store, rows=10)
    assert len(found.events) == 10
    assert {event.document_id for event in found.events} >= {"b1", "b2", "c1"}


def test_indexes_and_tenants_are_left_out_as_asked(database: Database, store: Store) -> None:
    (a,) = database.insert(("contacts", "c1"), tenant="acme")
    (b,) = database.insert(("notes", "n1"), tenant="acme")
    (c,) = database.insert(("notes", "n2"), tenant="other")
    assert claim(store, leave_out=["contacts", "notes"]) is None
    assert ids_of(claim(store, tenants_out=["acme"], lanes_out=[("notes", "other")])) == []
    assert ids_of(claim(store, tenants_out=["acme"], lanes_out=[("contacts", "other")])) == [c]
    assert ids_of(claim(store, only="notes")) == [b]
    assert ids_of(claim(store, leave_out=["notes"])) == [a]


def test_claim_ends_at_its_bytes(database: Database, store: Store) -> None:
    with database.engine.begin() as connection:
        rows = [("index", "contacts", f"c{n}", None, None, None if n else 300, NOW) for n in range(3)]
        ids = list(dialect_of(connection).insert(connection, rows, ["é" * 150] * 3))  # type: ignore[arg-type]
    assert ids_of(claim(store, bytes_=600)) == ids[:2]  # a row without a size is looked at


def test_paused_outbox_gives_no_claim(database: Database, store: Store) -> None:
    ids = database.insert(("contacts", "c1"))
    pauses.pause(store, "maintenance", "me", NOW)
    assert claim(store) is None
    assert store.control().pause_reason == "maintenance"
    assert pauses.resume(store)
    assert not pauses.resume(store)
    assert ids_of(claim(store)) == ids


def test_advanced_epoch_takes_every_claim_back(database: Database, store: Store) -> None:
    ids = database.insert(("contacts", "c1"))
    held = claimed(store)
    assert operators.advance_epoch(store, 7, NOW) == 8
    assert [each.event.id for each in outcomes.record(store, held, applied(held), NOW)] == ids
    assert claimed(store).version // EPOCH_STEP == 8


# -- leases and outcomes ----------------------------------------------------------------------------------------


def test_lease_is_renewed_as_long_as_the_claim_holds(database: Database, store: Store) -> None:
    ids = database.insert(("contacts", "c1"), ("contacts", "c2"))
    held = claimed(store)
    renewed = claims.renew(store, held, ids, NOW + 90_000)
    assert renewed is not None
    assert renewed.lease_expires_at == NOW + 90_000
    assert upkeep.reap(store, NOW + 89_999, 10 * LEASE_MS).given_back == 0
    assert upkeep.reap(store, NOW + 90_000, 10 * LEASE_MS).given_back == 2
    assert database.row(ids[0])["error_type"] == UNANSWERED
    assert claims.renew(store, held, ids, NOW + 120_000) is None


def test_rows_that_are_released_keep_their_attempts(database: Database, store: Store) -> None:
    (row,) = database.insert(("contacts", "c1"))
    for undelivered, deliveries in ((True, 0), (False, 1)):
        held = claimed(store)
        assert claims.release(store, held, [row], NOW, undelivered=undelivered) == 1
        found = database.row(row)
        assert (found["state"], found["attempts"], found["deliveries"]) == ("pending", 0, deliveries)
        assert claims.release(store, held, [row], NOW, undelivered=undelivered) == 0


def test_outcome_is_recorded_only_where_the_claim_holds(database: Database, store: Store) -> None:
    ids = database.insert(*(("contacts", f"c{n}") for n in range(4)))
    mine = claimed(store)
    claims.release(store, mine, ids[:2], NOW, undelivered=False)
    theirs = claimed(database.store(), relay=2)
    lost = outcomes.record(store, mine, applied(mine), NOW + 5)
    assert [each.event.id for each in lost] == ids[:2] == ids_of(theirs)
    assert [database.row(each)["state"] for each in ids] == ["claimed", "claimed", "done", "done"]
    assert database.row(ids[3])["finished_at"] == NOW + 5
    assert database.scalars("SELECT lost_claims FROM outbox_stats") == [2]


def test_each_end_of_a_row_is_written_as_it_is(database: Database, store: Store) -> None:
    ids = database.insert(*(("contacts", f"c{n}") for n in range(3)))
    held = claimed(store)
    one, two, three = held.events
    outcomes.record(
        store,
        held,
        [
            Transition(one, State.DONE, Result.SUPERSEDED),
            Transition(two, State.DEAD, error_type="rejected", error="it's no\ndate: 5 %"),
            Transition(three, State.PENDING, available_at=NOW + 9, attempts=1, error_type="failed", error="é" * 3_000),
        ],
        NOW,
    )
    found = [database.row(each) for each in ids]
    assert [(row["state"], row["outcome"]) for row in found] == [
        ("done", "superseded"),
        ("dead", None),
        ("pending", None),
    ]
    assert (found[1]["error_type"], found[1]["error"]) == ("rejected", "it's no\\ndate: 5 %")
    assert (found[2]["attempts"], found[2]["available_at"], len(found[2]["error"])) == (1, NOW + 9, 2_000)
    assert {row["claim_token"] for row in found} == {None}
    assert store.counts() == {"pending": 1, "claimed": 0, "done": 1, "dead": 1}
    assert store.unfinished() == 1
    assert claims.any_unfinished(store, "contacts")
    assert not claims.any_unfinished(store, "notes")


def test_statistics_of_one_minute_add_up_and_are_summed_by_the_hour(database: Database, store: Store) -> None:
    for _ in range(3):
        database.insert(("contacts", "c1"), ("contacts", "c2"))
        held = claimed(store)
        outcomes.record(store, held, applied(held), NOW + 7)
    (row,) = store.run("SELECT * FROM outbox_stats").mappings()
    assert (row["minute"], row["done"], row["latency_sum_ms"], row[LATENCIES[0]]) == (MINUTE, 6, 42, 6)
    while upkeep.compact_stats(store, NOW + 2 * 3_600_000):
        pass
    (summed,) = store.run("SELECT * FROM outbox_stats").mappings()
    assert summed["minute"] == NOW - NOW % 3_600_000
    assert [summed[name] for name in STATISTICS] == [row[name] for name in STATISTICS]
    assert upkeep.prune_stats(store, NOW + 3_600_000) == 1


def test_greatest_depth_of_a_minute_stays(database: Database, store: Store) -> None:
    ids = database.insert(("contacts", "c1"), ("contacts", "c2"))
    upkeep.note_depth(store, NOW + 5)
    with store.write(durable=False):
        versions.remove(store, ids)
    upkeep.note_depth(store, NOW + 6)
    assert [tuple(row) for row in store.run("SELECT * FROM outbox_depths")] == [(MINUTE, 2, 5)]


def test_rows_of_a_dead_relay_are_given_back_and_the_one_that_kills_dies(database: Database, store: Store) -> None:
    (row,) = database.insert(("contacts", "c1"))
    for delivery in range(1, 4):
        held = claimed(store, lone_after=1)
        assert held.lone is (delivery > 1)
        reaped = upkeep.reap(store, NOW, 10 * LEASE_MS, dead_relays=[1, 9], lone_after=1)
        assert tuple(reaped) == ((1, 0) if delivery < 3 else (0, 1))
    found = database.row(row)
    assert (found["state"], found["error_type"]) == ("dead", POISON)
    counted = store.run("SELECT minute, index_name, entity, tenant_id, action, dead FROM outbox_stats")
    assert [tuple(row) for row in counted] == [(MINUTE, "contacts", "", "", "refresh", 1)]
    assert upkeep.reap(store, NOW, 10 * LEASE_MS, dead_relays=[]) == (0, 0)
    assert RELAY_DIED != POISON


# -- what operators, maintenance and verification ask -----------------------------------------------------------


def test_dead_row_is_tried_again_unless_its_document_moved_on(database: Database, store: Store) -> None:
    stays, whole, again = database.insert(("contacts", "c1"), ("contacts", "c2"), ("contacts", "c3"), action="update")
    held = claimed(store)
    outcomes.record(store, held, [Transition(e, State.DEAD, error_type="x", error="y") for e in held.events], NOW)
    (later,) = database.insert(("contacts", "c1"), action="update")
    database.insert(("contacts", "c2"), action="refresh")
    held = claimed(store)
    outcomes.record(store, held, applied(held), NOW)
    assert [row["id"] for row in operators.dead(store, document="c2")] == [whole]
    assert [row["id"] for row in operators.dead(store, ids=[stays, again], limit=1)] == [stays]
    retried = operators.retry_dead(store, [again, whole, stays], NOW)
    assert (retried.pending, retried.superseded, retried.overtaken) == (1, 1, {stays: later})
    assert database.row(stays)["error"].startswith(f"row {later} of the same document was delivered meanwhile")
    assert operators.discard_dead(store, [stays, again]) == 1
    assert operators.pending(store) == [again]
    assert operators.purge(store, [again]) == 1


def test_rows_that_are_done_are_listed_in_pages_and_leave_no_version(database: Database, store: Store) -> None:
    ids = database.insert(*(("contacts", f"c{n}") for n in range(5)))
    held = claimed(store)
    outcomes.record(store, held, applied(held), NOW)
    first = upkeep.finished(store, NOW + 1, (0, 0), 3)
    rest = upkeep.finished(store, NOW + 1, (first[-1].finished_at, first[-1].id), 3)
    assert [row.id for row in [*first, *rest]] == ids
    assert all(row.whole and not row.behind_dead for row in first)
    assert upkeep.remove_finished(store, ids) == 5
    assert store.control().highest_pruned_version == 0  # what was answered cannot come late


def test_verification_knows_what_moved_while_it_looked(database: Database, store: Store) -> None:
    database.insert(("contacts", "c1"))
    since = verifications.note_unfinished(store)
    database.insert(("contacts", "it's"))
    places = [("contacts", each) for each in ("c1", "it's", "c3")]
    assert verifications.moving(store, places, since) == set(places[:2])
    verifications.refresh(store, [("contacts", "c3", None, "Contact"), ("notes", "n1", "acme", "Note")], NOW)
    assert [(row["document_id"], row["tenant_id"]) for row in store.events()][-2:] == [("c3", None), ("n1", "acme")]


def test_scheduled_verification_is_begun_by_one(database: Database, store: Store) -> None:
    def begin(at: Store) -> int | None:
        return verifications.begin(at, "relay", ["Contact"], None, 0.5, NOW, unless_scheduled_since=NOW - 1)

    number = begin(store)
    assert number is not None
    assert begin(database.store()) is None
    verifications.finish(store, number, dict.fromkeys(verifications.FOUND, 2), None, NOW + 1)
    last = verifications.last(store)
    assert last is not None
    assert (last["sample"], last["scheduled"], last["missing"], last["entities"]) == (0.5, 1, 2, ["Contact"])


def test_versions_found_elsewhere_are_outrun(database: Database, store: Store) -> None:
    assert verifications.raise_above(store, EPOCH_STEP + 5_000, NOW) is None
    database.insert(("contacts", "c1"))
    assert claimed(store).version > EPOCH_STEP + 5_000
    assert verifications.raise_above(store, 4 * EPOCH_STEP + 1, NOW) == 5
    assert store.control().epoch == 5


def test_conflict_is_explained_by_what_was_drawn(database: Database, store: Store) -> None:
    first, second = database.insert(("contacts", "c1"), ("contacts", "c2"))
    held = claimed(store)
    events = {event.id: event for event in held.events}
    facts = conflicts.explain(
        store, [conflicts.Conflict(events[first], held.version), conflicts.Conflict(events[second], held.version + 1)]
    )
    assert (facts[first].drawn, facts[second].drawn) == (True, False)


def test_each_claim_has_a_higher_version_than_all_before_and_rows_keep_their_first(
    database: Database, store: Store
) -> None:
    first, second = database.insert(("contacts", "c1"), ("contacts", "c2"))
    one, other = claimed(store, rows=1), claimed(database.store(), rows=1)
    assert one.version < other.version
    claims.release(store, one, [first], NOW, undelivered=True)
    assert database.row(first)["version"] is None
    again = claimed(store, rows=1)
    assert other.version < again.version == database.row(first)["version"]
    claims.release(store, again, [first], NOW, undelivered=False)
    last = claimed(store, rows=1)
    assert (last.events[0].version, database.row(first)["version"]) == (again.version, again.version)
    outcomes.record(store, last, [each._replace(version=last.version) for each in applied(last)], NOW)
    assert (database.row(first)["version"], database.row(second)["version"]) == (last.version, other.version)


def test_versions_that_are_drawn_side_by_side_are_never_the_same(database: Database) -> None:
    drawn: list[int] = []

    def draw(store: Store) -> None:
        for number in (1, 3) * 25:
            with store.write(durable=False, alone=True):
                last = versions.draw(store, number)
            drawn.extend(range(last - number + 1, last + 1))

    in_threads(*((draw, database.store()) for _ in range(4)))
    assert len(drawn) == len(set(drawn)) == 400
    assert max(drawn) == database.store().highest_version()


def test_tenant_is_removed_with_a_delete_of_each_document(database: Database, store: Store) -> None:
    database.insert(("contacts", "c1"), ("contacts", "it's"), tenant="acme")
    assert operators.documents_of_tenant(store, ("acme",)) == {"contacts": {"c1", "it's"}}
    assert operators.remove_rows_of_tenant(store, ("acme",)) == 2
    assert operators.write_deletes(store, "contacts", ["c1", "it's"], "acme", NOW) == 2
    assert operators.rows_of_tenant(store, ("acme",)) == 2
    store.register_index("contacts", "contacts-1")
    store.register_index("contacts", "contacts-2")
    assert operators.targets_at_rest(store, "contacts") == ["contacts-1"]
    operators.forget_index(store, "contacts")
    assert store.targets() == {}


def test_row_that_got_no_answer_time_and_again_is_claimed_alone_before_the_others_or_after_them(
    database: Database, store: Store
) -> None:
    suspect, *others = database.insert(("contacts", "c1"), ("contacts", "c2"), ("contacts", "c3"))
    with store.write(durable=False):
        store.run(
            "UPDATE outbox_events SET deliveries = 2, error_type = :unanswered, available_at = :now WHERE id = :id",
            unanswered=UNANSWERED,
            now=NOW - 1,
            id=suspect,
        )
    first = claimed(store, lone_after=1, lone_last=True)
    assert (ids_of(first), first.lone, first.more) == (others, False, True)
    alone = claimed(store, lone_after=1, lone_last=True)
    assert (ids_of(alone), alone.lone, alone.more) == ([suspect], True, False)
    for each in (first, alone):
        claims.release(store, each, ids_of(each), NOW, undelivered=True)
    assert ids_of(claim(store, lone_after=1)) == [suspect]


def test_row_that_got_no_answer_is_not_claimed_before_an_earlier_one_of_its_document(
    database: Database, store: Store
) -> None:
    """The earlier one got an answer since, if only "not now"."""
    earlier, suspect, *others = database.insert(("contacts", "c1"), ("contacts", "c1"), ("contacts", "c2"))
    with store.write(durable=False):
        store.run(
            "UPDATE outbox_events SET deliveries = 2, error_type = :unanswered WHERE id = :id",
            unanswered=UNANSWERED,
            id=suspect,
        )
    first = claimed(store, lone_after=1)
    assert (ids_of(first), first.lone) == ([earlier, *others], False)
    assert claim(store, lone_after=1) is None
    claims.release(store, first, [earlier, *others], NOW, undelivered=True)
    assert ids_of(claim(store, lone_after=1)) == [earlier, *others]


def test_claim_that_has_lost_a_row_draws_no_more_versions_for_it(database: Database, store: Store) -> None:
    database.insert(("contacts", "c1"), ("contacts", "c1"))
    before = claimed(store)
    drawn = claims.versions_for(store, before, before.events)
    assert drawn is not None
    assert before.version < drawn[0] < drawn[1]
    operators.advance_epoch(store, 0, NOW)  # which releases all claims
    again = claimed(store)
    assert claims.versions_for(store, before, before.events) is None
    assert claims.versions_for(store, again, again.events) is not None


def test_claim_says_whether_it_has_left_anything_that_is_due(database: Database, store: Store) -> None:
    database.insert(*(("contacts", f"c{n}") for n in range(3)))
    for given, taken, more in (
        ({"rows": 2}, 2, True),
        ({"leave_out": ["notes"]}, 1, True),
        ({"rows": 1_000}, 0, None),
    ):
        found = claim(store, **given)  # type: ignore[arg-type]
        assert (len(ids_of(found)), found and found.more) == (taken, more)
    database.insert(("contacts", "c4"), ("contacts", "c4"), ("notes", "n1"))
    assert not claimed(store).more
