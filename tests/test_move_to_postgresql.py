"""From SQLite to PostgreSQL, and back, with the commands of the guide."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pytest
from sqlalchemy import URL, Engine, create_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, sessionmaker

from outbox import EntityRegistry, OutboxRepository
from outbox.destinations.embedded.destination import EmbeddedDestination
from tests.support import LIMIT_S
from tests.support.outbox import Outbox
from tests.support.pages import EVERYTHING, ROOT, blocks
from tests.support.postgres import Postgres

PAGE = "docs/how-to/move-to-postgresql.md"
JOINED = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC).replace(tzinfo=None)


class Base(DeclarativeBase):
    pass


class Contact(Base):
    __tablename__ = "contacts"
    id: Mapped[int] = mapped_column(primary_key=True)
    tenant_id: Mapped[str]
    name: Mapped[str]
    active: Mapped[bool]
    joined: Mapped[datetime]


registry = EntityRegistry()
registry.add(Contact, index="contacts", fields=["name", "active", "joined"], tenant="tenant_id")
Sessions = sessionmaker()
registry.capture(Sessions)


def save(engine: Engine, *names: str, note: str | None = None) -> None:
    with Sessions(bind=engine) as session, session.begin():
        session.add_all([Contact(tenant_id="t1", name=name, active=True, joined=JOINED) for name in names])
        if note:
            OutboxRepository(session).index("notes", note, {"text": note})


class Shell:
    """The commands of the guide, in the directory of the application."""

    def __init__(self, directory: Path, old: str, new: URL) -> None:
        (directory / "bin").mkdir()
        command = directory / "bin" / "outbox-relay"
        command.write_text(f"#!/bin/sh\nexec {sys.executable} -c 'from outbox.cli import main; main()' \"$@\"\n")
        command.chmod(0o755)
        self._directory, self._old = directory, old
        self._new = new.render_as_string(hide_password=False)

    def run(self, commands: str, *, on_new: bool) -> str:
        lines = (line for line in commands.splitlines() if "systemctl" not in line and not line.startswith("export"))
        done = subprocess.run(
            ["bash", "-e", "-c", "\n".join(lines)],
            cwd=self._directory,
            env={
                "PATH": f"{self._directory}/bin:{Path(sys.executable).parent}:/usr/bin:/bin",
                "PYTHONPATH": f"{self._directory}:{ROOT}",
                "OUTBOX_DATABASE_URL": self._new if on_new else self._old,
                "OUTBOX_ENTITIES": f"{__name__}:registry",
                "OUTBOX_DESTINATION": "embedded",
                "OUTBOX_EMBEDDED_PATH": "search.db",
            },
            input="y\n",  # `epoch advance` asks
            capture_output=True,
            text=True,
            timeout=3 * LIMIT_S,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr


@pytest.mark.slow
def test_move_keeps_every_document_and_the_way_back_is_open(
    outbox: Outbox, postgres: Postgres, guide: Callable[[str], Path], tmp_path: Path
) -> None:
    guide(PAGE)
    drain, copy, begin, again = (each.content for each in blocks(EVERYTHING[PAGE]) if each.language == "sh")
    with postgres.database(empty=True) as url:
        shell = Shell(tmp_path, outbox.url, url)
        Base.metadata.create_all(outbox.engine)
        save(outbox.engine, "Ada", "Grace", note="n1")
        for _ in range(3):  # versions of the new database must be above these
            shell.run("outbox-relay epoch advance --yes", on_new=False)
        save(outbox.engine, "Alan", note="n2")
        assert "0 waiting" in shell.run(drain, on_new=False)

        new = create_engine(url)
        Base.metadata.create_all(new)
        shell.run(copy, on_new=True)
        assert "no drift" in shell.run(begin, on_new=True)

        save(new, "Edsger", note="n1")  # its id goes on, and the note was there before
        shell.run(again, on_new=True)
        shell.run("outbox-relay run --drain", on_new=True)
        assert "no drift" in shell.run("outbox-relay verify", on_new=True)
        assert "0 dead" in shell.run("outbox-relay status", on_new=True)
        with closing(EmbeddedDestination(tmp_path / "search.db")) as destination:
            found = destination.read("contacts", ["1", "2", "3", "4"])
            assert [found[id_].source["name"] for id_ in ("1", "2", "3", "4")] == ["Ada", "Grace", "Alan", "Edsger"]
            assert found["1"].source["joined"] == JOINED.isoformat()
            assert set(destination.read("notes", ["n1", "n2"])) == {"n1", "n2"}
        new.dispose()

        *_, advance, reindex, verify, _ = begin.splitlines()
        assert "no drift" in shell.run("\n".join([advance, reindex, verify]), on_new=False)
        with closing(EmbeddedDestination(tmp_path / "search.db")) as destination:
            assert set(destination.read("contacts", ["1", "2", "3", "4"])) == {"1", "2", "3"}
