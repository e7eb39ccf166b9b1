"""A first start on an index that others have filled, with versions that this database has not given: nothing dies."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from outbox.cli import main
from outbox.destinations.base import Operation
from outbox.store import conflicts
from outbox.store.models import EPOCH_STEP, now_ms
from tests.reindex.world import SECOND, World
from tests.support.outbox import Outbox
from tests.support.places import EmbeddedPlace, Place
from tests.support.relays import Relays, until

SECONDS = 1_000
ADVANCE = "outbox-relay epoch advance"

Command = Callable[..., Result]


@pytest.fixture
def command(outbox: Outbox, place: Place) -> Command:
    environment = {"OUTBOX_DATABASE_URL": outbox.url, **place.environment}
    return lambda *arguments: CliRunner().invoke(main, arguments, env=environment)


def fill(place: Place, versions: dict[str, int], deleted: bool = False) -> None:
    """What an earlier database of the application, now gone, has left in the index."""
    target = place.destination.ensure_index("contacts")
    content = None if deleted else b'{"of":"others"}'
    operations = [Operation("contacts", target, each, given, content) for each, given in versions.items()]
    place.destination.apply(operations)


def of_epoch(epoch: int, *ids: int) -> dict[str, int]:
    return {f"c{id_}": epoch * EPOCH_STEP + 1_000 + id_ for id_ in ids}


def test_rows_wait_for_an_index_with_versions_of_others_until_the_epoch_is_advanced(
    outbox: Outbox, place: Place, command: Command
) -> None:
    fill(place, of_epoch(1, 1, 2, 3, 500))
    rows = outbox.index_many("contacts", [(f"c{n}", {"n": n}) for n in range(1, 6)])
    flowing = outbox.index("deals", "d1", {})
    relay, now = outbox.relay(place.destination), now_ms()
    for seconds in (0, 2, 10, 60, 120):
        relay.run_once(now + seconds * SECONDS)
        relay.run_once(now + seconds * SECONDS)
    assert [outbox.state(row) for row in rows] == ["pending", "pending", "pending", "done", "done"]
    assert {(outbox.row(row)["attempts"], outbox.row(row)["error_type"]) for row in rows[:3]} == {
        (0, "unexplained_version")
    }
    assert (outbox.state(flowing), outbox.dead()) == ("done", [])
    (paused,) = relay.breakers()
    assert (paused["index"], ADVANCE in paused["reason"]) == ("contacts", True)

    assert command("epoch", "advance", "--yes").stdout == "the epoch is 2 now\n"
    while relay.run_once(now + 600 * SECONDS):
        pass
    assert ({outbox.outcome(row) for row in rows}, relay.breakers()) == ({"applied"}, [])
    assert place.documents("contacts") == {
        **{f"c{n}": {"n": n} for n in range(1, 6)}, "c500": {"of": "others"}
    }  # fmt: skip


def test_log_check_and_status_name_the_one_command(
    outbox: Outbox, place: Place, command: Command, said: list[str]
) -> None:
    fill(place, of_epoch(1, 1, 900))
    outbox.index("contacts", "c1", {})
    outbox.drain(place.destination)
    (line,) = [line for line in said if "pausing it" in line]
    assert line.startswith("WARNING index contacts takes no rows (unexplained_version: the index holds version 1")
    assert f"run '{ADVANCE}'" in line
    checked = command("check")
    assert checked.exit_code == 1
    assert f"index contacts: 1 row waits: the index holds version {EPOCH_STEP + 1_001} of document c1" in checked.stdout
    assert f"→ run '{ADVANCE}'" in checked.stdout
    assert (
        f"WAITING for contacts, 1 row: the index holds version {EPOCH_STEP + 1_001} of document c1"
        in command("status").stdout
    )
    (held,) = json.loads(command("status", "--json").stdout)["held_by_versions"]
    assert (held["index"], held["rows"], ADVANCE in held["reason"]) == ("contacts", 1, True)
    command("epoch", "advance", "--yes")
    outbox.drain(place.destination)
    assert "WAITING" not in command("status").stdout
    assert "index contacts: goes to" in command("check").stdout


def test_versions_that_are_known_of_deleted_documents_only_are_overtaken_too(
    outbox: Outbox, place: Place, command: Command
) -> None:
    fill(place, of_epoch(7, 1, 2))
    fill(place, of_epoch(8, 1, 2), deleted=True)
    rows = [outbox.index("contacts", "c1", {}), outbox.delete("contacts", "c2")]
    outbox.drain(place.destination)
    assert [outbox.state(row) for row in rows] == ["pending", "pending"]
    assert command("epoch", "advance", "--yes").stdout == "the epoch is 9 now\n"
    outbox.drain(place.destination)
    assert [outbox.outcome(row) for row in rows] == ["applied", "deleted"]


def test_update_with_an_upsert_that_waited_for_the_epoch_is_merged_into_what_others_left(
    outbox: Outbox, place: Place, command: Command
) -> None:
    """Versions of others are above all that were sent for the row; it is nowhere in their document."""
    fill(place, {"c1": 1_760_000_000_000})
    row = outbox.update("contacts", "c1", {"n": 2}, upsert={"n": 1})
    relay, now = outbox.relay(place.destination), now_ms()
    for seconds in (0, 60):
        relay.run_once(now + seconds * SECONDS)
        relay.run_once(now + seconds * SECONDS)
    assert outbox.state(row) == "pending"
    command("epoch", "advance", "--yes")
    while relay.run_once(now + 600 * SECONDS):
        pass
    assert (outbox.outcome(row), place.documents("contacts")) == ("applied", {"c1": {"of": "others", "n": 2}})


def test_version_that_is_unexplained_after_the_epoch_was_advanced_kills_its_row_as_anywhere(
    outbox: Outbox, place: Place, command: Command
) -> None:
    fill(place, of_epoch(1, 900))
    outbox.index("contacts", "c1", {})
    outbox.drain(place.destination)
    command("epoch", "advance", "--yes")
    fill(place, of_epoch(2, 800))
    row = outbox.index("contacts", "c800", {})
    outbox.drain(place.destination)
    assert (outbox.state(row), outbox.row(row)["error_type"]) == ("dead", "unexplained_version")


def test_reindex_of_an_entity_mends_it_too_and_leaves_nothing_of_the_others(outbox: Outbox, place: Place) -> None:
    fill(place, {"2:t1:1": EPOCH_STEP + 800, "2:t1:2": EPOCH_STEP + 900, "2:t1:77": EPOCH_STEP + 901})
    world = World(outbox, place).filled(3)
    assert outbox.counts()["pending"] == 2
    world.delete(2)
    world.rebuild()
    world.relay = world.another_relay()
    world.assert_in_step()
    assert place.indexes() == [SECOND]
    assert conflicts.filled_by_others(world.store) == set()
    world.store.close()


def test_redelivery_to_an_index_that_was_there_before_holds_up_nothing(outbox: Outbox, place: Place) -> None:
    fill(place, {"c1": 7})  # of another program, that counts by itself
    row = outbox.index("contacts", "c1", {"n": 1})
    outbox.drain(place.destination)
    outbox.raw("UPDATE outbox_events SET state = 'pending', available_at = 1, outcome = NULL, finished_at = NULL")
    relay = outbox.relay(place.destination)
    relay.run_once()
    assert (outbox.outcome(row), relay.breakers()) == ("applied", [])


@pytest.mark.slow
def test_relay_that_waits_goes_on_by_itself_when_the_epoch_was_advanced(outbox: Outbox, tmp_path: Path) -> None:
    place = EmbeddedPlace(tmp_path / "search.db")
    fill(place, of_epoch(1, 1, 900))
    relays = Relays(outbox, "http://localhost:1", tmp_path)
    relays.give(**place.environment, OUTBOX_HEARTBEAT_INTERVAL="0.2")
    try:
        row = outbox.index("contacts", "c1", {})
        relays.start()
        until(lambda: f"run '{ADVANCE}'" in relays.log(), "it says what to do")
        until(lambda: ADVANCE in relays.call("status").stdout, "so does status")
        assert relays.call("epoch", "advance", "--yes").returncode == 0
        until(lambda: outbox.state(row) == "done", "the row is delivered")
    finally:
        relays.end()
        place.destination.close()
