"""The page on tests of an application: each of its ways, as a suite that is run twice."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import LIMIT_S
from tests.support.pages import EVERYTHING, ROOT, write_files

pytestmark = pytest.mark.slow

PAGE = EVERYTHING["docs/how-to/test-your-application.md"]

MORE = """
from myapp import models


def test_other_tests_have_left_nothing(outbox):
    outbox.assert_nothing_enqueued()
    outbox.assert_nothing_enqueued("contacts")


def test_row_that_is_not_delivered_disturbs_no_other_test(outbox):
    models.create("Grace", tenant="acme")
    outbox.assert_enqueued("contacts", times=1)


def test_row_that_dies_fails_this_test_alone(outbox):
    from outbox import OutboxRepository

    with models.Session.begin() as session:
        OutboxRepository(session).update("notes", "1", {"text": "of nothing"})
    outbox.drain(allow_dead=True)
    assert len(outbox.rows("notes")) == 1
"""


def suite(application: Path, folder: str, *options: str) -> str:
    """Runs the tests of a folder in a process of their own. Returns what pytest says."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options, folder],
        cwd=application,
        env={"PYTHONPATH": f"{application}:{ROOT}", "PATH": "/usr/bin:/bin"},
        capture_output=True, text=True, timeout=LIMIT_S, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("folder", ["tests", "rolled_back", "in_memory"])
def test_suite_passes_twice_on_one_database(tmp_path: Path, folder: str) -> None:
    write_files(PAGE, tmp_path)
    documented = (tmp_path / "tests/test_contacts.py").read_text()
    for name, text in (("contacts", documented), ("more", MORE), ("contacts_again", documented)):
        (tmp_path / folder / f"test_{name}.py").write_text(text)
    for _ in range(2):
        assert "5 passed" in suite(tmp_path, folder)


def test_workers_have_files_of_their_own(tmp_path: Path) -> None:
    write_files(PAGE, tmp_path)
    documented = (tmp_path / "tests/test_contacts.py").read_text()
    for number in range(4):
        (tmp_path / f"in_parallel/test_contacts_{number}.py").write_text(documented)
    assert "4 passed" in suite(tmp_path, "in_parallel", "-n", "2")
    assert not list(tmp_path.glob("app.db*"))


def test_rolled_back_tests_leave_nothing(tmp_path: Path) -> None:
    write_files(PAGE, tmp_path)
    (tmp_path / "rolled_back/test_contacts.py").write_text((tmp_path / "tests/test_contacts.py").read_text())
    suite(tmp_path, "rolled_back")
    with sqlite3.connect(tmp_path / "app.db") as database:
        assert database.execute("SELECT count(*) FROM contacts").fetchone() == (0,)
