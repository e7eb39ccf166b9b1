"""The files that are made beside a database: the guide names them all, and git ignores them."""

from __future__ import annotations

import re
import subprocess
import threading
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import pytest
from sqlalchemy import Engine
from sqlalchemy.orm import Session

from outbox import sqlite
from outbox.store.sqlite.presence import LockFiles
from tests.support import LIMIT_S
from tests.support.outbox import Outbox
from tests.support.pages import EVERYTHING, first
from tests.support.relays import Relays, until

GUIDE = EVERYTHING["docs/how-to/files.md"]


@pytest.fixture
def relays(outbox: Outbox, tmp_path: Path) -> Iterator[Relays]:
    """Relay processes that deliver to a file."""
    running = Relays(outbox, "", tmp_path)
    running.give(OUTBOX_DESTINATION="embedded", OUTBOX_EMBEDDED_PATH="search.db")
    yield running
    running.end()


@pytest.fixture
def at_work(engine: Engine, outbox: Outbox, relays: Relays, tmp_path: Path) -> Iterator[Path]:
    """A relay at work, a reindex, and a writer that had to wait: all files that there are."""
    outbox.index("contacts", "c1", {"name": "Ada"})
    relays.start()
    until(lambda: outbox.counts()["done"] == 1, "the row is delivered")
    reindex = LockFiles(Path(str(engine.url.database))).hold("reindex", "a1b2c3")
    writer = threading.Thread(target=outbox.index, args=("contacts", "c2", {"name": "Grace"}))
    with engine.begin() as connection:
        sqlite.lock(Session(connection))
        writer.start()
        until((tmp_path / "app.db-waiting").exists, "the writer says that it waits")
    writer.join(LIMIT_S)
    until(lambda: outbox.counts()["done"] == 2, "the second row is delivered and leaves no lease")
    yield tmp_path
    reindex.end()


def test_every_file_beside_the_database_is_in_the_table_and_git_ignores_it(at_work: Path) -> None:
    table = re.findall(r"`((?:app|search)\.db\S*?)`", GUIDE.split("| file |")[1].split("\n\n")[0])
    found = {path.name for path in at_work.glob("*.db*")}
    assert {name for name in found if not any(fnmatch(name, each.replace("…", "*")) for each in table)} == set()

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", *words], cwd=at_work, check=True, capture_output=True, text=True, timeout=LIMIT_S
        ).stdout

    git("init", "--quiet")
    (at_work / ".env").write_text("OUTBOX_ELASTICSEARCH_PASSWORD=secret\n")
    (at_work / ".gitignore").write_text(first(GUIDE, "gitignore"))
    listed = git("status", "--porcelain", "--untracked-files=all")
    assert {line.removeprefix("?? ") for line in listed.splitlines()} <= {".gitignore", "relay-0.log"}


@pytest.mark.slow
def test_locks_can_be_removed_when_nothing_runs(at_work: Path, outbox: Outbox, relays: Relays) -> None:
    relays.end()
    for name in re.findall(r"`(app\.db\S*)` \| a lock", GUIDE):
        for path in at_work.glob(name.replace("…", "*")):
            path.unlink()
    outbox.index("contacts", "c3", {"name": "Alan"})
    assert relays.call("run", "--drain").returncode == 0
    assert outbox.counts()["done"] == 3
