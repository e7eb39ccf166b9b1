"""However the path of the database is written, all processes find what is beside it, and people read the whole path."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from timeit import timeit

import pytest
from sqlalchemy import create_engine, make_url
from sqlalchemy.exc import OperationalError

from outbox import schema, sqlite
from outbox.store.sqlite.lock import LONGEST_YIELD_S, leave_to_writers
from outbox.store.sqlite.place import path_of
from outbox.store.store import dialect_of
from tests.support import LIMIT_S
from tests.support.relays import COMMAND, until

SPELLINGS: dict[str, Callable[[Path], str]] = {
    "absolute": lambda real: f"sqlite:///{real}",
    "relative": lambda real: f"sqlite:///{os.path.relpath(real)}",
    "link": lambda real: f"sqlite:///{linked(real)}",
    "linked directory": lambda real: f"sqlite:///{linked(real.parent)}/{real.name}",
    "URI": lambda real: f"sqlite:///file:{os.path.relpath(real)}?uri=true",
    "absolute URI": lambda real: f"sqlite:///file://{real}?uri=true&mode=rwc",
}


def linked(path: Path) -> Path:
    link = path.parent.parent / "current"
    link.symlink_to(path)
    return link


@pytest.fixture
def real(tmp_path: Path) -> Path:
    (tmp_path / "releases" / "1").mkdir(parents=True)
    return tmp_path / "releases" / "1" / "app.db"


@pytest.fixture(params=SPELLINGS)
def spelt(request: pytest.FixtureRequest, real: Path) -> str:
    return SPELLINGS[request.param](real)


def call(*arguments: str, url: str) -> subprocess.CompletedProcess[str]:
    environment = {
        "OUTBOX_DATABASE_URL": url,
        "OUTBOX_DESTINATION": "embedded",
        "OUTBOX_EMBEDDED_PATH": "search.db",
    }
    return subprocess.run(
        [*COMMAND, *arguments],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=3 * LIMIT_S,
        check=False,
    )


@pytest.mark.parametrize("turned", [False, True], ids=["application", "relay"])
def test_relay_leaves_the_lock_to_an_application_that_spells_the_path_in_another_way(
    spelt: str, real: Path, turned: bool
) -> None:
    urls = [spelt, f"sqlite:///{real}"]
    application, relay = (create_engine(url) for url in (reversed(urls) if turned else urls))
    for engine in (application, relay):
        sqlite.prepare(engine)
    schema.upgrade(application)

    def write() -> None:
        with application.begin() as connection:
            dialect_of(connection).lock(connection)

    with relay.begin() as holding, ThreadPoolExecutor() as threads:
        dialect_of(relay).lock(holding)
        writer = threads.submit(write)
        until((real.parent / "app.db-waiting").exists, "the application says that it waits")
        until(
            lambda: timeit(lambda: leave_to_writers(path_of(relay)), number=1) >= LONGEST_YIELD_S,
            "the relay notices the application that waits",
        )
        holding.rollback()
        writer.result(LIMIT_S)
    application.dispose()
    relay.dispose()


def test_processes_that_spell_the_path_in_different_ways_see_each_other(spelt: str, real: Path) -> None:
    engine, other = create_engine(spelt), create_engine(f"sqlite:///{real}")
    schema.upgrade(engine)
    dialect = dialect_of(engine)
    held = dialect.presence(engine).hold("relay", 1)
    assert dialect.presence(other).live("relay", [1]) == [1]
    assert dialect.identity(engine) == dialect.identity(other)
    held.end()
    engine.dispose()


def test_application_that_has_gone_to_another_directory_waits_beside_its_database(
    real: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = create_engine(f"sqlite:///{os.path.relpath(real)}")
    sqlite.prepare(engine, busy_timeout=0.01)
    monkeypatch.chdir("/")  # as what works in the background does
    with engine.connect() as one, engine.connect() as other:
        dialect_of(one).lock(one)
        with pytest.raises(OperationalError, match="locked"):
            dialect_of(other).lock(other)
    assert real.with_name("app.db-waiting").exists()
    engine.dispose()


@pytest.mark.slow
def test_commands_take_every_spelling_and_say_the_whole_path(spelt: str, real: Path, tmp_path: Path) -> None:
    made = call("migrate", url=spelt)
    path = str(Path(str(make_url(spelt).database).removeprefix("file://").removeprefix("file:")).absolute())
    assert made.stdout.startswith(f"{path}: this database file is new\n{path}: outbox tables are at revision ")
    assert call("migrate", url=spelt).stdout.startswith(f"{path}: already at revision ")
    drained = call("run", "--drain", url=spelt)
    assert f" of {path} to {tmp_path}/search.db" in drained.stderr
    assert f"{real} can be read" in call("check", url=spelt).stdout
    assert call("status", url=spelt).returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize("url", ["sqlite:///app.db", "sqlite:///file:app.db?uri=true"])
def test_missing_database_is_said_with_its_whole_path_and_not_made(url: str, tmp_path: Path) -> None:
    for command in ("run", "status"):
        failed = call(command, url=url)
        assert failed.returncode == 2
        assert f"error: database {tmp_path}/app.db does not exist" in failed.stderr
    assert f"database {tmp_path}/app.db does not exist" in call("check", url=url).stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    "url", ["sqlite://host/app.db", "sqlite:///file:app.db?uri=perhaps", "sqlite:///file:app.db?uri=true&mode=memory"]
)
def test_address_that_names_no_file_is_one_line(url: str) -> None:
    failed = call("status", url=url)
    assert (failed.returncode, failed.stderr.count("\n")) == (2, 1)
    assert "OUTBOX_DATABASE_URL" in failed.stderr
