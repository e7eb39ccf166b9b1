"""What only a destination in a file can meet: locks, a full disk, other people's files, words not yet taken up."""

from __future__ import annotations

import doctest
import fcntl
import json
import multiprocessing
import os
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from outbox.destinations.base import Operation, Outcome, OutcomeKind
from outbox.destinations.embedded import mapping, search, words
from outbox.destinations.embedded.destination import EmbeddedDestination
from outbox.errors import DestinationError
from tests.support import LIMIT_S
from tests.support.outbox import Outbox


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "search.db"


@pytest.fixture
def destination(path: Path) -> Iterator[EmbeddedDestination]:
    made = EmbeddedDestination(path, timeout=0.2)
    made.ensure_index("contacts")
    yield made
    made.close()


def put(document_id: str, version: int = 1, **document: object) -> Operation:
    return Operation("contacts", "contacts-000001", document_id, version, json.dumps(document).encode())


def kind_and_error(outcomes: list[Outcome]) -> tuple[OutcomeKind, str | None]:
    (outcome,) = outcomes
    return outcome.kind, outcome.error


# -- faults of the file ---------------------------------------------------------------------------------------------


def test_file_locked_for_too_long_is_unavailable_and_takes_rows_afterwards(
    destination: EmbeddedDestination, path: Path
) -> None:
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    (outcome,) = destination.apply([put("c1")])
    assert (outcome.kind, outcome.error_type) == (OutcomeKind.UNAVAILABLE, "sqlite_busy")
    assert destination.ping() == "database is locked"
    with pytest.raises(DestinationError, match="database is locked"):
        destination.ensure_index("deals")
    other.execute("ROLLBACK")
    assert destination.apply([put("c1")])[0].kind is OutcomeKind.APPLIED
    other.close()


def test_thread_that_keeps_the_connection_for_too_long_is_unavailable_to_others(
    destination: EmbeddedDestination,
) -> None:
    before = time.monotonic()
    with destination._file.writing():
        assert kind_and_error(destination.apply([put("c1")])) == (
            OutcomeKind.UNAVAILABLE,
            "other threads of this process keep the file busy",
        )
    assert time.monotonic() - before < 20
    assert destination.apply([put("c1")])[0].kind is OutcomeKind.APPLIED


class _Busy:
    """A lock that another thread has for a while."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def acquire(self, timeout: float) -> bool:
        assert timeout > self._seconds
        time.sleep(self._seconds)
        return True

    def release(self) -> None:
        return


def test_wait_for_threads_and_then_for_processes_is_one_wait(
    destination: EmbeddedDestination, monkeypatch: pytest.MonkeyPatch
) -> None:
    destination._file._timeout = 60.0
    with monkeypatch.context() as patched:
        patched.setattr(destination._file, "_lock", _Busy(0.2))
        assert destination.apply([put("c1")])[0].kind is OutcomeKind.APPLIED
    assert destination._file._connection is not None
    (left_ms,) = destination._file._connection.execute("PRAGMA busy_timeout").fetchone()  # as SQLite was told
    assert left_ms <= 59_800


def test_full_disk_is_unavailable_and_keeps_nothing_of_the_batch(destination: EmbeddedDestination) -> None:
    assert destination._file._connection is not None
    (pages,) = destination._file._connection.execute("PRAGMA page_count").fetchone()
    destination._file._connection.execute(f"PRAGMA max_page_count = {pages + 10}")
    outcomes = destination.apply([put(f"c{n}", text="x" * 3_000) for n in range(100)])
    assert set(outcomes) == {Outcome(OutcomeKind.UNAVAILABLE, "sqlite_full", "database or disk is full")}
    assert destination.read("contacts", [f"c{n}" for n in range(100)]) == {}
    destination._file._connection.execute(f"PRAGMA max_page_count = {pages + 10_000}")
    assert {o.kind for o in destination.apply([put("c1"), put("c2")])} == {OutcomeKind.APPLIED}


def test_batch_that_fails_in_its_middle_leaves_nothing_behind(destination: EmbeddedDestination, path: Path) -> None:
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("ALTER TABLE words_due RENAME TO away")
    assert destination.apply([put("c1")])[0].kind is OutcomeKind.UNAVAILABLE
    other.execute("ALTER TABLE away RENAME TO words_due")
    other.close()
    assert destination.read("contacts", ["c1"]) == {}
    assert destination.apply([put("c1")])[0].kind is OutcomeKind.APPLIED


def test_file_whose_journal_cannot_be_switched_at_this_moment_is_used_as_it_is(
    destination: EmbeddedDestination, path: Path
) -> None:
    destination.apply([put("c1", n=1)])
    destination.close()
    reader = sqlite3.connect(path, isolation_level=None)
    reader.execute("PRAGMA journal_mode = DELETE")
    reader.execute("BEGIN")
    reader.execute("SELECT count(*) FROM documents").fetchone()
    assert destination.read("contacts", ["c1"])["c1"].source == {"n": 1}
    reader.execute("COMMIT")
    destination.close()
    assert destination.apply([put("c2")])[0].kind is OutcomeKind.APPLIED
    reader.close()
    with sqlite3.connect(path) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    connection.close()


def test_letter_to_grandmother_is_no_destination(path: Path) -> None:
    path.write_text("Dear grandmother,\n" * 200)
    made = EmbeddedDestination(path)
    assert kind_and_error(made.apply([put("c1")])) == (OutcomeKind.UNAVAILABLE, "file is not a database")
    with pytest.raises(DestinationError, match=r"search\.db.*not a database"):
        made.ensure_index("contacts")
    assert path.read_text().startswith("Dear grandmother")


def test_database_of_the_application_is_left_alone(path: Path) -> None:
    sqlite3.connect(path).execute("CREATE TABLE contacts (id)").connection.close()
    made = EmbeddedDestination(path)
    with pytest.raises(DestinationError, match="OUTBOX_EMBEDDED_PATH"):
        made.ensure_index("contacts")
    assert "another database" in str(made.apply([put("c1")])[0].error)
    with sqlite3.connect(path) as connection:
        assert connection.execute("SELECT name FROM sqlite_master").fetchall() == [("contacts",)]
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("delete",)
    connection.close()


def test_directory_that_is_missing_is_said(tmp_path: Path) -> None:
    made = EmbeddedDestination(tmp_path / "nowhere" / "search.db")
    assert "nowhere does not exist" in str(made.ping())
    with pytest.raises(DestinationError, match=r"search\.db.*unable to open"):
        made.ensure_index("contacts")


@pytest.mark.parametrize("empty", [False, True])
def test_file_is_made_by_the_first_index_and_by_nothing_else(path: Path, empty: bool) -> None:
    if empty:
        path.touch()
    made = EmbeddedDestination(path)
    assert made.apply([put("c1")])[0][:2] == (OutcomeKind.BLOCKED, "index_not_found_exception")
    assert made.ping() is None
    assert made.inspect_index("contacts", "contacts-000001").exists is False
    assert made.highest_version("contacts") == 0
    for call in (lambda: made.search("contacts", "ada"), lambda: made.refresh("contacts"), lambda: made.read("c", [])):
        with pytest.raises(DestinationError, match="does not exist"):
            call()
    assert path.exists() == empty
    assert made.ensure_index("contacts") == "contacts-000001"
    assert made.apply([put("c1")])[0].kind is OutcomeKind.APPLIED
    made.close()


def test_mappings_and_settings_stand_in_the_file(destination: EmbeddedDestination, path: Path) -> None:
    destination.ensure_index("deals", {"dynamic": False}, {"index.refresh_interval": "5s"})
    with sqlite3.connect(path) as connection:
        found = connection.execute("SELECT name, mappings, settings FROM indexes ORDER BY name").fetchall()
    connection.close()
    assert found == [
        ("contacts-000001", None, None),
        ("deals-000001", '{"dynamic": false}', '{"index.refresh_interval": "5s"}'),
    ]


def test_file_that_was_removed_is_not_written_to_any_longer(destination: EmbeddedDestination, path: Path) -> None:
    destination.apply([put("c1")])
    for each in path.parent.glob("search.db*"):
        each.unlink()
    assert destination.apply([put("c2")])[0].kind is OutcomeKind.BLOCKED
    destination.ensure_index("contacts")
    assert destination.apply([put("c2")])[0].kind is OutcomeKind.APPLIED
    assert set(destination.read("contacts", ["c1", "c2"])) == {"c2"}


def _find_when_asked(path: Path, asked: Connection) -> None:
    made = EmbeddedDestination(path)
    while word := asked.recv():
        asked.send(len(made.search("contacts", word)))
    made.close()


def test_file_that_is_removed_without_its_log_while_a_process_holds_it_is_made_anew_for_both(
    destination: EmbeddedDestination, path: Path
) -> None:
    destination.apply([put(f"c{n}", name="Ada") for n in range(300)])
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    idle = context.Process(target=_find_when_asked, args=(path, there))
    idle.start()
    here.send("ada")
    assert here.recv() == 10
    destination.close()
    path.unlink()
    assert {each.name for each in path.parent.glob("search.db*")} == {"search.db-wal", "search.db-shm"}

    destination.ensure_index("contacts")
    assert destination.apply([put("c1", name="Ada"), put("c2", name="Ada")])[1].kind is OutcomeKind.APPLIED
    assert len(destination.search("contacts", "ada")) == 2
    here.send("ada")
    assert here.recv() == 2
    here.send(None)
    idle.join()
    assert destination.apply([put("c3", name="Ada")])[0].kind is OutcomeKind.APPLIED
    other = EmbeddedDestination(path)
    assert (other.health().status, len(other.search("contacts", "ada"))) == ("ok", 3)
    other.close()


def test_file_that_another_process_is_about_to_make_is_waited_for(path: Path) -> None:
    log = path.with_name("search.db-wal")
    log.touch()
    made = EmbeddedDestination(path, timeout=0.2)
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        fcntl.flock(directory, fcntl.LOCK_EX)
        with pytest.raises(DestinationError, match=r"other processes keep directory .* locked"):
            made.ensure_index("contacts")
        assert (path.exists(), log.exists()) == (False, True)
    finally:
        os.close(directory)
    assert made.ensure_index("contacts") == "contacts-000001"
    made.close()


def test_malformed_file_is_said_by_health_with_what_to_do(destination: EmbeddedDestination, path: Path) -> None:
    destination.apply([put(f"c{n}", name="Ada") for n in range(300)])
    destination.close()
    with path.open("r+b") as file:
        file.seek(4_096)
        file.write(b"\xff" * (path.stat().st_size - 4_096))
    assert str(destination.ping()).startswith("it is malformed (")
    with pytest.raises(DestinationError, match=r"search\.db cannot be used: .*malformed.*outbox-relay reindex --all"):
        destination.health()


@pytest.mark.parametrize(
    "source", ['{"name":"Ada","n":1E+400}', f'{{"name":"Ada","n":{"[" * 990}{"]" * 990}}}'], ids=["number", "nesting"]
)
def test_document_that_cannot_be_read_and_was_taken_before_fails_no_search(
    destination: EmbeddedDestination, path: Path, source: str
) -> None:
    destination.apply([put("c1", name="Ada"), put("c2", name="Ada")])
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE documents SET source = ? WHERE document_id = 'c1'", (source,))
    connection.close()
    assert [hit.document_id for hit in destination.search("contacts", "ada")] == ["c2"]
    assert [hit.document_id for hit in destination.search("contacts", None, where={"name": "Ada"})] == ["c2"]
    assert [len(destination.search("contacts", None)), len(destination.read("contacts-000001", ["c1", "c2"]))] == [2, 2]
    assert destination.apply([put("c1", 2, name="Ada")])[0].kind is OutcomeKind.APPLIED
    assert len(destination.search("contacts", "ada")) == 2


# -- several at once ------------------------------------------------------------------------------------------------


def _apply_a_range(path: Path, start: int) -> None:
    made = EmbeddedDestination(path)
    made.ensure_index("contacts")
    for at in range(start, start + 200, 20):
        outcomes = made.apply([put(f"c{n}", version=n + 1, n=n) for n in range(at, at + 20)])
        assert {outcome.kind for outcome in outcomes} == {OutcomeKind.APPLIED}, outcomes
    made.close()


@pytest.mark.slow
def test_processes_that_begin_with_one_new_file_lose_nothing(path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_apply_a_range, args=(path, n * 200)) for n in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4
    made = EmbeddedDestination(path)
    assert len(made.read("contacts", [f"c{n}" for n in range(800)])) == 800
    made.close()


def test_new_file_whose_tables_are_being_made_is_not_taken_for_another_database(tmp_path: Path) -> None:
    def prepare(made: EmbeddedDestination, together: threading.Barrier, answers: list[str]) -> None:
        together.wait()
        answers.append(made.ensure_index("contacts"))
        made.close()

    for number in range(40):  # one start in three met the moment
        together, answers = threading.Barrier(4), list[str]()
        threads = [
            threading.Thread(target=prepare, args=(EmbeddedDestination(tmp_path / f"{number}.db"), together, answers))
            for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert answers == ["contacts-000001"] * 4


def test_threads_that_write_one_document_leave_the_highest_version(destination: EmbeddedDestination) -> None:
    def write(start: int) -> None:
        for version in range(start, 200, 4):
            destination.apply([put("c1", version, n=version)])

    destination._file._timeout = LIMIT_S
    threads = [threading.Thread(target=write, args=(n,)) for n in (1, 2, 3, 4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    held = destination.read("contacts", ["c1"])["c1"]
    assert (held.version, held.source) == (199, {"n": 199})


def test_what_one_process_applied_another_finds_without_a_refresh(destination: EmbeddedDestination, path: Path) -> None:
    destination.apply([put("c1", name="Ada")])
    other = EmbeddedDestination(path)
    assert [hit.document_id for hit in other.search("contacts", "ada")] == ["c1"]
    other.close()


# -- chosen by name -------------------------------------------------------------------------------------------------


def command(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", "from outbox.cli import main; main()", *arguments],
        env={**os.environ, "OUTBOX_DATABASE_URL": "sqlite:///app.db", **environment},
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )


def test_relay_process_delivers_to_the_file_and_check_is_content(outbox: Outbox, path: Path) -> None:
    outbox.index_many("contacts", [(f"c{n}", {"n": n}) for n in range(20)])
    chosen = {"OUTBOX_DESTINATION": "embedded", "OUTBOX_EMBEDDED_PATH": "search.db"}
    drained = command("run", "--drain", **chosen)
    assert (drained.returncode, outbox.counts()["done"]) == (0, 20), drained.stderr
    made = EmbeddedDestination(path)
    assert made.read("contacts", ["c7"])["c7"].source == {"n": 7}
    made.close()
    checked = command("check", **chosen)
    assert (checked.returncode, "index contacts: goes to contacts-000001" in checked.stdout) == (0, True)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("chosen", "says"),
    [
        ({"OUTBOX_DESTINATION": "embedded"}, "set OUTBOX_EMBEDDED_PATH"),
        ({"OUTBOX_DESTINATION": "embedded", "OUTBOX_ELASTICSEARCH_URL": "http://localhost:1"}, "set OUTBOX_EMBEDDED"),
        ({"OUTBOX_EMBEDDED_PATH": "search.db"}, "OUTBOX_DESTINATION=embedded and OUTBOX_EMBEDDED_PATH"),
        ({}, "set OUTBOX_ELASTICSEARCH_URL, e.g. http://localhost:9200; or, to do without a cluster"),
        ({"OUTBOX_DESTINATION": "opensearch"}, "set OUTBOX_OPENSEARCH_URL"),
        ({"OUTBOX_DESTINATION": "solr"}, "OUTBOX_DESTINATION"),
    ],
)
@pytest.mark.usefixtures("engine")
def test_destination_that_is_not_fully_chosen_is_one_line_and_exit_2(
    chosen: dict[str, str], says: str, path: Path
) -> None:
    failed = command("run", **chosen)
    assert (failed.returncode, failed.stderr.count("\n")) == (2, 1)
    assert says in failed.stderr
    assert not path.exists()


# -- words ----------------------------------------------------------------------------------------------------------


def test_words_of_a_replaced_or_deleted_document_are_forgotten(destination: EmbeddedDestination) -> None:
    destination.apply([put("c1", 1, name="Ada"), put("c2", 1, name="Ada")])
    destination.refresh("contacts")
    destination.apply([put("c1", 2, name="Grace"), Operation("contacts", "contacts-000001", "c2", 2, None)])
    destination.refresh("contacts")
    assert not destination.search("contacts", "ada")
    assert [hit.document_id for hit in destination.search("contacts", "grace")] == ["c1"]


def test_words_that_an_earlier_version_took_of_what_is_not_indexed_fail_no_search_and_go_with_a_new_index(
    destination: EmbeddedDestination, path: Path
) -> None:
    mappings = {"properties": {"name": {"type": "text"}, "settings": {"type": "object", "enabled": False}}}
    destination.create_index("settled-000001", mappings, {})
    destination.swap("settled", None, "settled-000001")
    document = b'{"name":"Ada","settings":{"theme":"midnight"}}'
    destination.apply([Operation("settled", "settled-000001", "c1", 1, document)])
    destination.refresh("settled")
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE words SET text = 'Ada' || char(10) || 'midnight'")
    connection.close()
    (hit,) = destination.search("settled", "midnight", highlight="settings.theme")
    assert (hit.document_id, hit.highlights) == ("c1", {})

    destination.create_index("settled-000002", mappings, {})  # as `reindex` does
    destination.apply([Operation("settled-000002", "settled-000002", "c1", 1, document)])
    destination.swap("settled", "settled-000001", "settled-000002")
    destination.drop_index("settled-000001")
    assert not destination.search("settled", "midnight")
    assert len(destination.search("settled", "ada")) == 1


def test_more_words_than_one_transaction_takes_up_are_all_found(
    destination: EmbeddedDestination, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "WORDS_AT_ONCE", 7)
    destination.apply([put(f"c{n}", name="Ada") for n in range(50)])
    assert len(destination.search("contacts", "ada", limit=100)) == 50


@pytest.mark.parametrize(
    "query", ['"', '""', "*", "-", "a AND (", "NEAR(", "ada OR", "text:", "^", "ada's", "%_", "\x00", "", "  ", "'"]
)
def test_query_is_words_and_no_syntax(destination: EmbeddedDestination, query: str) -> None:
    destination.apply([put("c1", name="Ada Lovelace")])
    destination.search("contacts", query)


def test_long_query_is_answered(destination: EmbeddedDestination) -> None:
    destination.apply([put("c1", name="Ada Lovelace")])
    query = " ".join(f"word{n}" for n in range(1_000)) + " ada"
    assert [hit.document_id for hit in destination.search("contacts", query)] == ["c1"]


@pytest.mark.parametrize(
    "query", ["muller", "MÜLLER", "müll", "Mu\u0308ller", "mulelr", "йод", "Nguyễn", "nguyen", "Émole"]
)
def test_letters_with_and_without_diacritics_are_the_same(destination: EmbeddedDestination, query: str) -> None:
    destination.apply([put("c1", name="Jürgen Müller Йод Nguyễn Emile")])
    assert [hit.document_id for hit in destination.search("contacts", query)] == ["c1"]


def test_common_word_beats_the_rare_misspelling(destination: EmbeddedDestination) -> None:
    destination.apply([put(f"c{n}", name="smith") for n in range(40)] + [put("rare", name="smyth")])
    hits = destination.search("contacts", "smith", limit=100)
    assert len(hits) == 41
    assert hits[-1].document_id == "rare"


@pytest.mark.parametrize("module", [words, mapping])
def test_examples_in_the_docstrings(module: object) -> None:
    result = doctest.testmod(module)  # type: ignore[arg-type]
    assert (result.failed, result.attempted > 0) == (0, True)
