"""The file of the embedded destination is deleted: what commands and a running relay say of it, and what mends it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.reindex.world import Command, World, command_of, in_a_file
from tests.support.outbox import Outbox
from tests.support.pages import ROOT
from tests.support.relays import Relays, until

REINDEX = "outbox-relay reindex --all"

registry = World.registered(tenancy="prefixed")


@pytest.fixture
def world(outbox: Outbox, tmp_path: Path) -> Iterator[World]:
    with in_a_file(outbox, tmp_path, 3) as made:
        yield made


@pytest.fixture
def relays(world: World, tmp_path: Path) -> Iterator[Relays]:
    """Processes that deliver to the file, without the proxy of Elasticsearch."""
    running = Relays(world.outbox, "http://localhost:1", tmp_path)
    running.give(**world.place.environment, OUTBOX_ENTITIES=f"{__name__}:registry", OUTBOX_HEARTBEAT_INTERVAL="0.2")
    running.give(PYTHONPATH=str(ROOT))
    yield running
    running.end()


@pytest.fixture
def command(world: World) -> Command:
    return command_of(world, f"{__name__}:registry")


def deleted(tmp_path: Path) -> None:
    for name in ("search.db", "search.db-wal", "search.db-shm"):
        (tmp_path / name).unlink(missing_ok=True)


def test_every_command_names_the_one_that_makes_the_index(command: Command, world: World, tmp_path: Path) -> None:
    deleted(tmp_path)
    checked = command("check")
    assert checked.exit_code == 1
    assert "index contacts: its rows go to contacts-000001, which is missing\n      → run '" + REINDEX in checked.stdout
    verified = command("verify")
    assert (verified.exit_code, verified.stdout.count("missing    contacts/")) == (1, 3)
    assert "3 documents of the database and 0 of the index" in verified.stdout
    assert verified.stdout.endswith(f"readers find no index contacts  → {REINDEX}\n")
    assert json.loads(command("verify", "--json").stdout.splitlines()[-1])["missing"] == 3
    repaired = command("verify", "--repair")
    assert (repaired.exit_code, REINDEX in repaired.stdout, "written" in repaired.stdout) == (1, True, False)
    assert REINDEX in command("search", "contacts", "ada").stderr

    assert command("reindex", "--all").exit_code == 0
    assert command("check").exit_code == 0
    assert command("verify").exit_code == 0
    assert "Ada 1" in command("search", "contacts", "ada").stdout
    world.assert_in_step()


@pytest.mark.slow
def test_relay_whose_file_is_deleted_says_so_and_delivers_when_the_index_is_made(
    relays: Relays, world: World, tmp_path: Path
) -> None:
    relays.start()
    world.save(1, "delivered")
    until(lambda: world.outbox.counts()["pending"] + world.outbox.counts()["claimed"] == 0, "it works")
    deleted(tmp_path)
    world.save(2, "waits")
    until(lambda: "index contacts takes no rows" in relays.log(), "the relay notices")
    assert f"index contacts-000001 is missing: run '{REINDEX}', which makes it from the database" in relays.log()
    until(lambda: "WAITING for contacts" in relays.call("status").stdout, "the relay has told it")
    assert REINDEX in relays.call("status").stdout
    assert REINDEX in relays.call("check").stdout
    rebuilt = relays.call("reindex", "--all")
    assert rebuilt.returncode == 0, rebuilt.stderr
    assert "index contacts-000001 is lost, readers and rows get contacts-000002 now" in rebuilt.stderr
    until(lambda: world.outbox.counts()["pending"] + world.outbox.counts()["claimed"] == 0, "what waited is delivered")
    assert relays.call("verify").returncode == 0
    assert relays.call("check").returncode == 0
    world.assert_in_step()


def test_index_of_no_entity_is_not_said_to_be_made_from_the_database(
    command: Command, world: World, tmp_path: Path
) -> None:
    world.outbox.index("notes", "n1", {"text": "by hand"})
    world.deliver()
    deleted(tmp_path)
    told = command("check").stdout.split("index notes: ")[1]
    assert "restore it from a snapshot, or create it with alias notes: it has no registered entity" in told


def test_kept_index_is_named_where_the_live_one_is_lost(command: Command, world: World) -> None:
    command("reindex", "--all", "--keep-old")
    world.place.destination.drop_index("contacts-000002")
    told = command("check").stdout
    assert "run 'outbox-relay reindex --entity contacts --rollback': contacts-000001, which was kept" in told
    assert "contacts-000001 again" in command("reindex", "--entity", "contacts", "--rollback").stdout
    assert command("check").exit_code == 0


def test_rollback_that_was_interrupted_is_finished_by_the_command_that_check_names(
    command: Command, world: World
) -> None:
    command("reindex", "--all", "--keep-old")
    world.place.destination.swap("contacts", "contacts-000002", "contacts-000001")  # and here it was killed
    told = command("check").stdout
    assert "run 'outbox-relay reindex --entity contacts --rollback': contacts-000001, which was kept" in told
    assert command("reindex", "--entity", "contacts", "--rollback").exit_code == 0
    assert command("check").exit_code == 0
    world.assert_in_step("contacts-000001")
