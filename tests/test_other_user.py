"""Application and relay as two users: nobody's look locks the other out, and a common group lets both work."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import LIMIT_S
from tests.support.relays import COMMAND

APPLICATION, RELAY, GROUP = 2001, 2002, 3000
WRITES = """
import sys
from sqlalchemy import create_engine
from sqlalchemy.orm import sessionmaker
from outbox import OutboxRepository, sqlite
engine = create_engine("sqlite:///" + sys.argv[1])
sqlite.prepare(engine)
with sessionmaker(engine).begin() as session:
    OutboxRepository(session).index("contacts", "c1", {"name": "Ada"})
"""

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can work as two users")


@pytest.fixture
def data() -> Iterator[Path]:
    """A directory of the application that its group may write to, as in the image."""
    made = Path(tempfile.mkdtemp(prefix="data-"))
    os.chown(made, APPLICATION, GROUP)
    made.chmod(0o2770)
    if as_user(APPLICATION, made, sys.executable, "-c", "import outbox").returncode:
        pytest.skip("other users may not run this interpreter")
    yield made
    shutil.rmtree(made)


def as_user(user: int, data: Path, *command: str, umask: int = 0o022) -> subprocess.CompletedProcess[str]:
    environment = {
        "OUTBOX_DATABASE_URL": f"sqlite:///{data}/app.db",
        "OUTBOX_DESTINATION": "embedded",
        "OUTBOX_EMBEDDED_PATH": f"{data}/search.db",
    }
    # What it covers it would have to leave in this checkout, where it may not write.
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")}
    who = ["setpriv", f"--reuid={user}", f"--regid={GROUP}", "--clear-groups"]
    return subprocess.run(
        [*who, *command],
        umask=umask,
        env=inherited | environment,
        capture_output=True,
        text=True,
        cwd="/",
        timeout=3 * LIMIT_S,
        check=False,
    )


def migrated(data: Path, umask: int) -> None:
    assert as_user(APPLICATION, data, *COMMAND, "migrate", umask=umask).returncode == 0


def application_writes(data: Path) -> str:
    """What it says when it cannot."""
    return as_user(APPLICATION, data, sys.executable, "-c", WRITES, f"{data}/app.db").stderr


@pytest.mark.slow
def test_command_of_a_user_who_may_not_write_leaves_nothing_that_locks_the_application_out(data: Path) -> None:
    migrated(data, 0o022)
    for command in (["check"], ["status"], ["dead", "list"], ["migrate"], ["run", "--drain"], ["serve", "--port", "0"]):
        said = as_user(RELAY, data, *COMMAND, *command)
        assert said.returncode == (1 if command == ["check"] else 2)
        assert f"chmod g+w {data}/app.db" in said.stdout + said.stderr
        assert "Traceback" not in said.stderr
        assert [file.name for file in data.iterdir()] == ["app.db"]
    assert application_writes(data) == ""


@pytest.mark.slow
def test_look_into_the_embedded_destination_does_not_lock_the_relay_out(data: Path) -> None:
    migrated(data, 0o002)
    assert application_writes(data) == ""
    assert as_user(RELAY, data, *COMMAND, "run", "--drain").returncode == 0
    for command in (["check"], ["search", "contacts", "Ada"]):
        said = as_user(APPLICATION, data, *COMMAND, *command)
        assert said.returncode == 1
        assert f"chmod g+w {data}/search.db" in said.stdout + said.stderr
        assert sorted(file.name for file in data.iterdir()) == ["app.db", "search.db"]
    assert as_user(RELAY, data, *COMMAND, "search", "contacts", "Ada").returncode == 0


@pytest.mark.slow
def test_two_users_of_one_group_work_side_by_side_with_a_umask_that_lets_it_write(data: Path) -> None:
    migrated(data, 0o002)
    relay = as_user(RELAY, data, *COMMAND, "check")
    assert relay.returncode == 0
    assert application_writes(data) == ""
    assert as_user(RELAY, data, *COMMAND, "run", "--drain", umask=0o002).stderr.endswith("1 done, 0 dead\n")
    found = as_user(APPLICATION, data, *COMMAND, "search", "contacts", "Ada")
    assert (found.returncode, found.stderr) == (0, "")
    assert application_writes(data) == ""


@pytest.mark.slow
def test_files_for_locks_let_in_whoever_may_write_to_the_database(data: Path) -> None:
    program = (
        "import os, sys; from pathlib import Path; os.umask(0o077)\n"
        "from outbox.store.sqlite.lock import waiting; from outbox.store.sqlite.presence import LockFiles\n"
        "with waiting(Path(sys.argv[1])): LockFiles(Path(sys.argv[1])).hold('relay', 1); os._exit(0)"
    )
    migrated(data, 0o007)
    subprocess.run([sys.executable, "-c", program, f"{data}/app.db"], check=True)  # as root
    found = {file.name: (file.stat().st_uid, oct(file.stat().st_mode)[-3:]) for file in data.iterdir()}
    assert found == dict.fromkeys(("app.db", "app.db-waiting", "app.db-relay-1"), (APPLICATION, "660"))
