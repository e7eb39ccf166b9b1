"""What every database must answer behind the seam: the same questions to each, in the words of the store.

Nothing here knows how a database does it. Another one joins by a line in `DATABASES`.
"""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, text

from outbox.errors import ConfigurationError
from outbox.store import claims, conflicts, malformed, operators, outcomes, upkeep, verifications, versions
from outbox.store.claims import Claim, ClaimRequest
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
    metadata,
    version,
)
from outbox.store.store import Store, dialect_of
from tests.support import LIMIT_S

NOW = 1_700_000_000_000
LEASE_MS = 60_000
MINUTE = NOW - NOW % 60_000

Making = Callable[[pytest.FixtureRequest], Engine]


def sqlite_file(request: pytest.FixtureRequest) -> Engine:
    directory: Path = request.getfixturevalue("tmp_path")
    return create_engine(f"sqlite:///{directory / 'app.db'}")


DATABASES: dict[str, Making] = {"sqlite": sqlite_file}


@dataclass
class Database:
    """One database with empty outbox tables."""

    engine: Engine
    opened: ExitStack = field(default_factory=ExitStack)

    def store(self) -> Store:
        """One more connection, as another process has it."""
        made = Store(self.engine)
        self.opened.callback(made.close)
        return made

    def insert(self, *rows: tuple[str, str], action: str = "refresh", tenant: str | None = None) -> list[int]:
        """Rows of (index, document id), in a transaction of an application."""
        with self.engine.begin() as connection:
            given = [(action, index, document, tenant, None, 0, NOW) for index, document in rows]
            return list(dialect_of(connection).insert(connection, given))

    def row(self, event_id: int) -> dict[str, Any]:
        with self.engine.connect() as connection:
            found = connection.execute(text("SELECT * FROM outbox_events WHERE id = :id"), {"id": event_id})
            return dict(found.mappings().one())

    def scalars(self, sql: str) -> list[Any]:
        with self.engine.connect() as connection:
            return list(connection.execute(text(sql)).scalars())


@pytest.fixture(params=DATABASES)
def database(request: pytest.FixtureRequest) -> Iterator[Database]:
    engine = DATABASES[request.param](request)
    dialect_of(engine).prepare(engine)
    metadata.create_all(engine)
    made = Database(engine)
    with made.opened:
        yield made
    engine.dispose()


@pytest.fixture
def store(database: Database) -> Store:
    return database.store()


def claim(store: Store, relay: int = 1, now: int = NOW, rows: int = 1_000, **given: Any) -> Claim | None:
    request = {"lease_ms": LEASE_MS, "longest_wait": LEASE_MS, "bytes_": 10**9, **given}
    return claims.claim(store, ClaimRequest(relay=relay, now=now, rows=rows, **request))


def claimed(store: Store, **given: Any) -> Claim:
    found = claim(store, **given)
    assert found is not None
    return found


def ids_of(claim: Claim | None) -> list[int]:
    return [event.id for event in claim.events] if claim else []


def applied(claim: Claim) -> list[Transition]:
    return [Transition(event, State.DONE, Result.APPLIED) for event in claim.events]


# -- a statement ------------------------------------------------------------------------------------------------


def test_database_that_is_not_supported_is_refused_by_name() -> None:
    with pytest.raises(ConfigurationError, match="does not work on mysql"):
        dialect_of(_Speaking("mysql"))  # type: ignore[arg-type]


class _Speaking:
    """What `dialect_of` looks at of an engine."""

    def __init__(self, name: str) -> None:
        self.dialect = type("dialect", (), {"name": name})


@pytest.mark.parametrize("wanted", [[], [1], [3, 5, 4_000], list(range(2, 10_000, 3))])
def test_among_a_list_of_any_length_is_one_parameter(database: Database, store: Store, wanted: list[int]) -> None:
    ids = database.insert(*(("contacts", f"c{n}") for n in range(20)))
    found = store.run(f"SELECT id FROM outbox_events WHERE id {store.dialect.among('ids')} ORDER BY id", ids=wanted)
    assert [row[0] for row in found] == [each for each in ids if each in wanted]
    others = store.run(f"SELECT id FROM outbox_events WHERE id {store.dialect.outside('ids')} ORDER BY id", ids=wanted)
    assert [row[0] for row in others] == [each for each in ids if each not in wanted]


ODD_TEXTS = [
    "plain",
    "it's",
    'a "quoted" one',
    "back\\slash",
    "é ü 漢",
    "😀",
    "100 %",
    ":name",
    "{curly}",
    "line\nbreak",
    "",
]


def test_text_of_any_kind_is_found_among_texts(database: Database, store: Store) -> None:
    database.insert(*(("contacts", each) for each in ODD_TEXTS))
    for wanted in (ODD_TEXTS, ODD_TEXTS[2:5], []):
        found = store.run(
            f"SELECT document_id FROM outbox_events WHERE document_id {store.dialect.among('texts')}", texts=wanted
        )
        assert {row[0] for row in found} == set(wanted)


def test_list_of_tuples_is_a_table(store: Store) -> None:
    given = [(each, at + 10**12, None) for at, each in enumerate(ODD_TEXTS)]
    pairs = store.dialect.table("pairs", name="TEXT", number="BIGINT", absent="TEXT")
    found = store.run(f"SELECT name, number, absent FROM {pairs} AS p ORDER BY number", pairs=given)
    assert [tuple(row) for row in found] == given
    assert store.run(f"SELECT count(*) FROM {pairs} AS p", pairs=[]).scalar_one() == 0


def test_parameters_are_taken_by_name_in_any_number_and_order(store: Store) -> None:
    sql = "SELECT CAST(:b AS BIGINT), CAST(:a AS BIGINT), CAST(:b AS BIGINT), ': no :parameter 5 % 3'"
    assert tuple(store.run(sql, a=1, b=2, unused=3).one()) == (2, 1, 2, ": no :parameter 5 % 3")


def test_greatest_and_least_of_values(store: Store) -> None:
    sql = store.dialect
    found = store.run(f"SELECT {sql.greatest('1', '3', '2')}, {sql.least('4', '3')}").one()
    assert tuple(found) == (3, 3)


def test_length_of_bytes_is_not_that_of_characters(store: Store) -> None:
    as_bytes = store.dialect.as_bytes("CAST(:text AS TEXT)")
    found = store.run(f"SELECT {as_bytes}, length({as_bytes})", text="é😀").one()
    assert (bytes(found[0]), found[1]) == ("é😀".encode(), 6)


def test_temporary_table_is_empty_each_time_and_of_one_connection(database: Database, store: Store) -> None:
    for _ in range(2):
        store.dialect.temporary(store.run, "noted", name="TEXT", number="BIGINT")
        assert store.run("SELECT count(*) FROM noted").scalar_one() == 0
        for _ in range(2):
            store.run("INSERT INTO noted VALUES ('a', 1) ON CONFLICT DO NOTHING")
        assert store.run("SELECT count(*) FROM noted").scalar_one() == 1
    other = database.store()
    other.dialect.temporary(other.run, "noted", name="TEXT", number="BIGINT")
    assert other.run("SELECT count(*) FROM noted").scalar_one() == 0


# -- transactions -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("durable", [True, False])
def test_transaction_that_fails_leaves_nothing(database: Database, store: Store, *, durable: bool) -> None:
    with pytest.raises(RuntimeError), store.write(durable=durable):
        store.run("INSERT INTO outbox_indexes (index_name, physical_index) VALUES ('a', 'a-1')")
        raise RuntimeError
    assert database.store().targets() == {}
    with store.write(durable=durable):
        store.run("INSERT INTO outbox_indexes (index_name, physical_index) VALUES ('a', 'a-1')")
    assert database.store().targets() == {"a": "a-1"}


def test_who_writes_alone_loses_no_update_of_another(database: Database) -> None:
    operators.resume(database.store())

    def count(store: Store) -> None:
        for _ in range(50):
            with store.write(durable=False, alone=True):
                versions.raise_epoch(store, 0, NOW)

    in_threads(*((count, database.store()) for _ in range(3)))
    assert database.store().control().epoch == 151


def in_threads(*calls: tuple[Callable[..., None], Any]) -> None:
    """Run them side by side, and raise what one of them raised."""
    raised: list[BaseException] = []

    def guarded(call: Callable[..., None], argument: Any) -> None:
        try:
            call(argument)
        except BaseException as error:
            raised.append(error)

    threads = [threading.Thread(target=guarded, args=each) for each in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT_S)
    assert raised == []


# -- ids --------------------------------------------------------------------------------------------------------


def test_ids_of_one_insert_belong_to_its_rows_whatever_others_insert(database: Database) -> None:
    """In order, but with gaps where a database has them."""
    written: dict[int, str] = {}

    def write(name: str) -> None:
        for batch in range(20):
            documents = [f"{name}-{batch}-{n}" for n in range(10)]
            with database.engine.begin() as connection:
                rows = [("index", "contacts", each, None, None, len(each) + 2, NOW) for each in documents]
                ids = dialect_of(connection).insert(connection, rows, [f'"{each}"' for each in documents])
            assert list(ids) == sorted(set(ids))
            written.update(zip(ids, documents, strict=True))

    in_threads((write, "a"), (write, "b"))
    assert len(written) == 400
    assert {row["id"]: row["document_id"] for row in database.store().events()} == written
    assert {row["id"]: row["document"] for row in database.store().events()} == {
        id_: f'"{each}"' for id_, each in written.items()
    }


def test_id_is_not_issued_again_when_its_row_is_gone(database: Database, store: Store) -> None:
    ids = database.insert(("contacts", "c1"), ("contacts", "c2"))
    with store.write(durable=True):
        assert versions.remove(store, ids) == 2
    assert database.insert(("contacts", "c3"))[0] > max(ids)


def test_watermark_is_not_below_any_id_that_was_issued(database: Database, store: Store) -> None:
    before = store.watermark()
    ids = database.insert(*(("contacts", f"c{n}") for n in range(3)))
    assert before < min(ids)
    assert store.watermark() >= max(ids)
    assert store.highest_id() >= max(ids)


def test_ids_can_be_raised_and_never_lowered(database: Database, store: Store) -> None:
    for last in (1_000, 10):  # before the first row as well
        with store.write(durable=True):
            store.raise_ids(last)
        assert database.insert(("contacts", "c1"))[0] > 1_000


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
    assert claims.fresh_lanes(store) == [
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
    assert ids_of(claim(store, tenants_out=["acme"])) == [c]
    assert ids_of(claim(store, only="notes")) == [b]
    assert ids_of(claim(store, leave_out=["notes"])) == [a]


def test_claim_ends_at_its_bytes(database: Database, store: Store) -> None:
    with database.engine.begin() as connection:
        rows = [("index", "contacts", f"c{n}", None, None, None if n else 300, NOW) for n in range(3)]
        ids = list(dialect_of(connection).insert(connection, rows, ["é" * 150] * 3))  # type: ignore[arg-type]
    assert ids_of(claim(store, bytes_=600)) == ids[:2]  # a row without a size is looked at


def test_paused_outbox_gives_no_claim(database: Database, store: Store) -> None:
    ids = database.insert(("contacts", "c1"))
    operators.pause(store, "maintenance", "me", NOW)
    assert claim(store) is None
    assert store.control().pause_reason == "maintenance"
    assert operators.resume(store)
    assert not operators.resume(store)
    assert ids_of(claim(store)) == ids


def test_advanced_epoch_takes_every_claim_back(database: Database, store: Store) -> None:
    ids = database.insert(("contacts", "c1"))
    held = claimed(store)
    assert operators.advance_epoch(store, 7, NOW) == 8
    assert [each.event.id for each in outcomes.record(store, held, applied(held), NOW)] == ids
    assert claimed(store).epoch == 8


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
    assert store.any_unfinished("contacts")
    assert not store.any_unfinished("notes")


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
    assert operators.pending(store) == (1, again)
    assert operators.purge(store, up_to=again) == 1


def test_rows_that_are_done_are_listed_in_pages_and_leave_their_version(database: Database, store: Store) -> None:
    ids = database.insert(*(("contacts", f"c{n}") for n in range(5)))
    held = claimed(store)
    outcomes.record(store, held, applied(held), NOW)
    first = upkeep.finished(store, NOW + 1, (0, 0), 3)
    rest = upkeep.finished(store, NOW + 1, (first[-1].finished_at, first[-1].id), 3)
    assert [row.id for row in [*first, *rest]] == ids
    assert all(row.whole and not row.behind_dead for row in first)
    assert upkeep.remove_finished(store, ids) == 5
    assert store.control().highest_pruned_version == version(1, max(ids))


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
    assert verifications.raise_above(store, version(1, 5_000), NOW) is None
    assert database.insert(("contacts", "c1"))[0] > 5_000
    assert verifications.raise_above(store, version(4, 1), NOW) == 5
    assert store.control().epoch == 5


def test_conflict_is_explained_by_what_was_delivered(database: Database, store: Store) -> None:
    first, second = database.insert(("contacts", "c1"), ("contacts", "c2"))
    held = claimed(store)
    events = {event.id: event for event in held.events}
    facts = conflicts.explain(
        store,
        [
            conflicts.Conflict(events[first], version(1, first)),
            conflicts.Conflict(events[second], version(1, first) + EPOCH_STEP),
        ],
    )
    assert (facts[first].deliveries, facts[second].deliveries) == (1, 0)


def test_tenant_is_removed_with_a_delete_of_each_document(database: Database, store: Store) -> None:
    database.insert(("contacts", "c1"), ("contacts", "it's"), tenant="acme")
    assert operators.documents_of_tenant(store, "acme") == {"contacts": {"c1", "it's"}}
    assert operators.remove_rows_of_tenant(store, "acme") == 2
    assert operators.write_deletes(store, "contacts", ["c1", "it's"], "acme", NOW) == 2
    assert operators.rows_of_tenant(store, "acme") == 2
    store.register_index("contacts", "contacts-1")
    store.register_index("contacts", "contacts-2")
    assert operators.forget_index(store, "contacts") == ["contacts-1"]


# -- the database itself ----------------------------------------------------------------------------------------


def test_signal_comes_from_the_commits_of_others(database: Database, store: Store) -> None:
    before = store.signal()
    assert store.signal() == before
    database.insert(("contacts", "c1"))
    assert store.signal() != before


def test_own_commit_is_no_signal(database: Database, store: Store) -> None:
    database.insert(("contacts", "c1"))
    before = store.signal()
    held = claimed(store)
    outcomes.record(store, held, applied(held), NOW)
    assert store.signal() == before


def test_schema_token_changes_with_the_tables(database: Database, store: Store) -> None:
    before = store.schema_token()
    database.insert(("contacts", "c1"))
    assert store.schema_token() == before
    with database.engine.begin() as connection:
        connection.execute(text("CREATE TABLE another (id INTEGER PRIMARY KEY)"))
    assert store.schema_token() != before


@pytest.mark.parametrize(("kind", "name", "other"), [("relay", 7, 8), ("reindex", "a1b2", "c3d4")])
def test_process_is_there_until_it_ends(database: Database, kind: str, name: Any, other: Any) -> None:
    presence, seen = database.store().presence, database.store().presence
    held = presence.hold(kind, name)
    assert seen.live(kind, [other, name]) == [name]
    assert seen.dead(kind, [other, name]) == []
    held.end()
    assert seen.live(kind, [other, name]) == []


@pytest.mark.parametrize(("kind", "name"), [("relay", 7), ("reindex", "a1b2")])
def test_killed_process_is_dead_until_its_locks_are_removed(database: Database, kind: str, name: Any) -> None:
    script = (
        "import os, sys\nfrom sqlalchemy import create_engine\nfrom outbox.store.store import dialect_of\n"
        "engine = create_engine(sys.argv[1])\n"
        f"held = dialect_of(engine).presence(engine).hold({kind!r}, {name!r})\nos._exit(9)"
    )
    url = database.engine.url.render_as_string(hide_password=False)
    subprocess.run([sys.executable, "-c", script, url], check=False, timeout=LIMIT_S)
    presence = database.store().presence
    assert presence.dead(kind, [name]) == [name]
    assert presence.live(kind, [name]) == []
    presence.remove_locks(kind, [name])
    assert presence.dead(kind, [name]) == []


def test_relays_are_listed_until_they_are_taken_off(store: Store) -> None:
    relays = [store.register_relay("host", pid, "1", NOW) for pid in (1, 2, 3)]
    assert relays == sorted(set(relays))
    store.heartbeat(relays[0], [{"index": None, "reason": "it's away"}], NOW + 1)
    store.deregister_relays(relays[1:])
    (left,) = store.relays()
    assert (left["id"], left["heartbeat_at"], left["breakers"][0]["reason"]) == (relays[0], NOW + 1, "it's away")


def test_clean_rows_are_not_malformed(database: Database, store: Store) -> None:
    (row,) = database.insert(("contacts", "é"), tenant="acme")
    before = database.row(row)
    assert malformed.end(store, NOW) == 0
    assert database.row(row) == before
    assert not store.dialect.is_row_fault(ValueError("x"))
    assert not store.dialect.is_row_fault(None)


def test_sizes_grow_with_what_is_written(database: Database, store: Store) -> None:
    before = store.sizes()
    database.insert(*(("contacts", "c" * 200) for _ in range(2_000)))
    upkeep.checkpoint(store)
    assert store.sizes().used > before.used
    assert min(store.sizes()) >= 0


def test_tidying_up_is_no_harm_beside_a_reader(database: Database, store: Store) -> None:
    database.insert(("contacts", "c1"))
    with database.engine.connect() as reader:
        reader.execute(text("SELECT count(*) FROM outbox_events")).one()
        upkeep.checkpoint(store)
    assert store.counts()["pending"] == 1


def test_nothing_is_found_wrong_with_a_database_that_was_prepared(database: Database) -> None:
    found = dialect_of(database.engine).findings(database.engine)
    assert [each for each in found if each.level == "fail"] == []
    assert len({each.name for each in found}) == len(found) > 0
    assert found[-1].name != "database"
