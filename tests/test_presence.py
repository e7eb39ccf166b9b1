"""The lock that tells others of a killed relay; and that a relay does without where it cannot have one."""

from __future__ import annotations

import fcntl
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from loguru import logger
from sqlalchemy import Engine, create_engine

from outbox import DatabaseUnavailable, sqlite
from outbox.cli import main
from outbox.maintenance.scheduler import Maintenance
from outbox.store.models import now_ms
from outbox.store.sqlite.presence import LockFiles
from outbox.store.store import Store
from tests.support.models import Base
from tests.support.outbox import Outbox, settings


@pytest.fixture
def database(tmp_path: Path) -> Path:
    return tmp_path / "app.db"


@pytest.fixture
def warnings() -> list[str]:
    said: list[str] = []
    logger.add(lambda message: said.append(str(message)), level="WARNING", format="{message}")
    return said


def test_relay_is_there_until_it_ends(database: Path) -> None:
    presence = LockFiles(database).hold("relay", 1)
    assert LockFiles(database).dead("relay", [1]) == []
    presence.end()
    assert list(database.parent.iterdir()) == []


def test_killed_relay_is_gone_and_its_file_too(database: Path) -> None:
    program = "import os, sys; from pathlib import Path; from outbox.store.sqlite.presence import LockFiles\n"
    program += "kept = LockFiles(Path(sys.argv[1])).hold('relay', 1); os._exit(9)"
    subprocess.run([sys.executable, "-c", program, database], check=False)
    assert [path.name for path in database.parent.iterdir()] == ["app.db-relay-1"]
    assert LockFiles(database).dead("relay", [1, 2]) == [1]
    LockFiles(database).remove_locks("relay", [1, 2])
    assert list(database.parent.iterdir()) == []


@pytest.mark.parametrize(
    ("command", "last"),
    [
        (["run", "--drain"], "outbox.store.store.Store.deregister_relays"),
        (["reindex", "--entity", "contacts"], "outbox.store.jobs.release"),
    ],
)
def test_process_that_is_killed_at_its_very_end_leaves_no_file_that_nobody_knows_of(
    outbox: Outbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: list[str], last: str
) -> None:
    left: list[list[Path]] = []

    def killed(*_: Any, **__: Any) -> None:
        left.append([*tmp_path.glob("app.db-re*")])

    Base.metadata.create_all(outbox.engine)
    monkeypatch.setattr(last, killed)
    environment = {
        "OUTBOX_DATABASE_URL": outbox.url,
        "OUTBOX_DESTINATION": "embedded",
        "OUTBOX_EMBEDDED_PATH": str(tmp_path / "search.db"),
        "OUTBOX_ENTITIES": "tests.reindex.test_reindex_kill:registry",
    }
    found = CliRunner().invoke(main, command, env=environment)
    assert (found.exit_code, left[-1]) == (0, []), found.output


def test_death_that_is_noticed_while_the_database_is_locked_is_not_forgotten(outbox: Outbox, tmp_path: Path) -> None:
    impatient = create_engine(outbox.engine.url)
    sqlite.prepare(impatient, busy_timeout=0.01)
    store, maintenance = Store(impatient), Maintenance(impatient, 2, settings(), list)
    killed = store.register_relay("here", 1, "0", now_ms())
    (tmp_path / f"app.db-relay-{killed}").touch()
    row = outbox.index("contacts", "c1", {})
    outbox.raw(
        f"UPDATE outbox_events SET state = 'claimed', claim_token = 'x', claimed_by = {killed}, deliveries = 1,"
        f" lease_expires_at = {now_ms() + 60_000}"
    )
    locking = outbox.engine.execution_options(outbox_begin="IMMEDIATE")
    with locking.begin(), pytest.raises(DatabaseUnavailable):
        maintenance.reap(store)
    maintenance.reap(store)
    assert (outbox.state(row), outbox.row(row)["error_type"]) == ("pending", "relay_died")
    assert outbox.relays() == []
    assert list(tmp_path.glob("app.db-relay-*")) == []
    store.close()
    impatient.dispose()


def test_relay_that_is_just_starting_is_not_taken_for_a_killed_one(
    database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[list[int]] = []
    flock = fcntl.flock

    def looked_at_first(file: Any, operation: int) -> None:
        if operation == fcntl.LOCK_EX:
            found.append(LockFiles(database).dead("relay", [1]))
        flock(file, operation)

    monkeypatch.setattr("fcntl.flock", looked_at_first)
    presence = LockFiles(database).hold("relay", 1)
    assert found == [[]]
    assert [path.name for path in database.parent.iterdir()] == ["app.db-relay-1"]
    assert LockFiles(database).live("relay", [1, 2]) == [1]
    presence.end()


def test_stopped_relay_keeps_its_place_on_the_list_and_one_that_left_nothing_does_not(
    outbox: Outbox, engine: Engine
) -> None:
    store = outbox.store()
    stopped, ended, me = (store.register_relay("host", n, "1", now_ms() - 3_600_000) for n in range(3))
    presence = LockFiles(Path(str(engine.url.database))).hold("relay", stopped)
    maintenance = Maintenance(engine, me, settings(), list)
    maintenance.reap(store)
    assert [relay["id"] for relay in store.relays()] == [stopped, me]
    presence.end()
    maintenance.reap(store)
    assert [relay["id"] for relay in store.relays()] == [me]
    assert ended not in (stopped, me)


def test_relay_without_a_lock_goes_on_after_one_warning_and_is_never_taken_for_dead(
    database: Path, warnings: list[str]
) -> None:
    database.with_name("app.db-relay-1-new").mkdir()  # where the file would be
    presence = LockFiles(database).hold("relay", 1)
    assert len(warnings) == 1
    assert warnings[0].count("\n") == 1
    assert f"{database.parent}: Is a directory" in warnings[0]
    assert "only when its lease ends" in warnings[0]
    assert LockFiles(database).dead("relay", [1]) == []
    presence.end()


def test_file_that_cannot_be_locked_is_not_left_to_tell_of_a_death(
    database: Path, monkeypatch: pytest.MonkeyPatch, warnings: list[str]
) -> None:
    def no_locks(*_: Any) -> None:
        raise OSError(37, "No locks available")

    with monkeypatch.context() as patched:
        patched.setattr("fcntl.flock", no_locks)
        presence = LockFiles(database).hold("relay", 1)
    assert "No locks available" in warnings[0]
    assert LockFiles(database).dead("relay", [1]) == []
    presence.end()


def test_file_that_others_may_not_read_is_no_proof_of_death(database: Path) -> None:
    database.with_name("app.db-relay-1").mkdir()  # cannot be opened either, not even by root
    assert LockFiles(database).dead("relay", [1]) == []


def test_killed_relay_is_gone_even_if_its_file_stays(database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(path: Path, **_: Any) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    database.with_name("app.db-relay-1").touch()
    monkeypatch.setattr(Path, "unlink", denied)
    assert LockFiles(database).dead("relay", [1]) == [1]
    LockFiles(database).remove_locks("relay", [1])
