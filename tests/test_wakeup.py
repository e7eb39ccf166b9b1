"""The relay's wait ends when it should, whatever interrupts it."""

from __future__ import annotations

import contextlib
import errno
import queue
import select
import signal
import sqlite3
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine

from outbox import sqlite
from outbox.destinations.embedded import EmbeddedDestination
from outbox.errors import DatabaseUnavailable
from outbox.files import beside
from outbox.relay.wakeup import Wakeup
from outbox.store.sqlite.watch import LogWatch, watch_of
from outbox.store.store import Store
from tests.support import LIMIT_S
from tests.support.outbox import Outbox
from tests.support.relays import until
from tests.support.watching import asked_of_stores

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="inotify is Linux's")


@pytest.fixture
def slow_handler() -> Iterator[None]:
    """The handler of SIGALRM outlasts every single look."""

    def handle(*_: Any) -> None:
        time.sleep(0.05)

    before = signal.signal(signal.SIGALRM, handle)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.usefixtures("slow_handler")
def test_signal_at_the_end_of_a_look_does_not_make_the_wait_endless() -> None:
    answers: queue.Queue[str] = queue.Queue()
    rescue = threading.Timer(60, answers.put, ["only this ended it"])
    rescue.start()
    signal.setitimer(signal.ITIMER_REAL, 0.005)
    with Wakeup(answers, lambda: 0) as wakeup:
        assert wakeup.wait(0.02, lambda: False) is None
    rescue.cancel()


def test_commit_and_stop_end_the_wait_and_an_answer_is_returned() -> None:
    answers: queue.Queue[str] = queue.Queue()
    commits = iter([0, 0, 1])
    with Wakeup(answers, lambda: next(commits)) as wakeup:
        assert wakeup.wait(60, lambda: False) is None
        assert not wakeup.timed_out
    with Wakeup(answers, lambda: 0) as wakeup:
        assert wakeup.wait(60, lambda: True) is None
        assert not wakeup.timed_out
        assert wakeup.wait(0, lambda: False) is None
        assert wakeup.timed_out
        answers.put("answer")
        assert wakeup.wait(0, lambda: True) == "answer"


def test_database_that_is_away_when_a_relay_begins_to_wait_is_looked_at_again() -> None:
    away = [True]

    def commits() -> int:
        if away:
            away.clear()
            raise DatabaseUnavailable("database: it is away")
        return 0

    with Wakeup(queue.Queue[str](), commits) as wakeup:
        assert wakeup.wait(60, lambda: False) is None
        assert not wakeup.timed_out


def looks_for_rows(asked: Sequence[tuple[str, Any]]) -> int:
    return sum("RECURSIVE head" in sql for sql, _ in asked)


def test_time_alone_has_no_relay_ask_for_rows_while_none_waits(outbox: Outbox, embedded: EmbeddedDestination) -> None:
    relay = outbox.relay(embedded, poll_interval=0.01)
    with asked_of_stores() as asked:
        running = threading.Thread(target=relay.run)
        running.start()
        until(lambda: sum("EXISTS" in sql for sql, _ in asked) > 10, "waits that time has ended")
        looks = looks_for_rows(asked)
        row = outbox.index("contacts", "c1", {"name": "Ada"})
        until(lambda: outbox.state(row) == "done", "the row is delivered")
        relay.stop()
        running.join()
    assert looks == 1


@on_linux
def test_ring_of_another_thread_ends_a_wait_that_looks_at_nothing(tmp_path: Path) -> None:
    answers: queue.Queue[str] = queue.Queue()
    with Wakeup(answers, lambda: 0, lambda: LogWatch(tmp_path / "app.db-wal")) as wakeup:

        def answer() -> None:
            answers.put("answer")
            wakeup.ring()

        timer = threading.Timer(0.1, answer)
        timer.start()
        assert wakeup.wait(LIMIT_S, lambda: False) == "answer"
        timer.join()
    wakeup.ring()  # a worker that answers after the end


def test_relay_does_not_look_again_for_rows_that_it_has_just_claimed(
    outbox: Outbox, embedded: EmbeddedDestination
) -> None:
    outbox.index("contacts", "c0", {})
    outbox.drain(embedded)  # the index is known
    outbox.index_many("contacts", [(f"c{n}", {"name": "Ada"}) for n in range(3)])
    relay = outbox.relay(embedded, poll_interval=60.0)
    with asked_of_stores() as asked:
        relay.run(drain=True)
    assert relay.totals.done == 3
    assert looks_for_rows(asked) == 2  # one that found them, and one after their answer


class Waiting:
    """A wait beside a database, and how often it was looked at."""

    def __init__(self, path: Path, own: sqlite3.Connection, *, watched: bool) -> None:
        self._own, self.looks = own, 0
        self.wakeup: Wakeup[str] = Wakeup(queue.Queue(), self._commits, lambda: watch_of(path))
        assert self.wakeup.watches is watched

    def _commits(self) -> int:
        self.looks += 1
        return int(self._own.execute("PRAGMA data_version").fetchone()[0])

    def is_ended_by_a_commit(self) -> bool:
        began = time.monotonic()
        self.wakeup.wait(LIMIT_S, lambda: False)
        return time.monotonic() - began < LIMIT_S


@contextlib.contextmanager
def waiting(path: Path, *, watched: bool = True) -> Iterator[Waiting]:
    own = sqlite3.connect(path, isolation_level=None)
    wait = Waiting(path, own, watched=watched)
    with wait.wakeup:
        yield wait
    own.close()


def application(path: Path) -> Engine:
    engine = create_engine(f"sqlite:///{path}")
    sqlite.prepare(engine)
    return engine


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A database to which nobody is connected."""
    engine = application(tmp_path / "app.db")
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE notes (text TEXT)")
    engine.dispose()
    return tmp_path / "app.db"


def write(engine: Engine) -> None:
    with engine.begin() as connection:
        connection.exec_driver_sql("INSERT INTO notes VALUES ('a')")


def soon(call: Any, *arguments: Any) -> threading.Timer:
    timer = threading.Timer(0.1, call, arguments)
    timer.start()
    return timer


@on_linux
def test_wait_looks_at_nothing_while_nothing_is_written_and_ends_at_a_commit(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("outbox.relay.wakeup.LOOKS_LAST_S", 0.5)
    engine = application(path)
    write(engine)
    with waiting(path) as wait:
        wait.wakeup.wait(0.7, lambda: False)
        looks = wait.looks
        wait.wakeup.wait(1, lambda: False)
        assert wait.looks - looks == 2  # when it begins, and when time is up
        for _ in range(3):
            soon(write, engine)
            assert wait.is_ended_by_a_commit()


@on_linux
def test_log_that_is_made_later_and_made_anew_is_watched(path: Path) -> None:
    log = beside(path, "-wal")
    with contextlib.closing(LogWatch(log)) as watch:
        poll = select.poll()
        poll.register(watch, select.POLLIN)
        for _ in range(2):
            assert not log.exists() and not watch.read()
            engine = application(path)
            write(engine)
            until(lambda: poll.poll(0) and watch.read(), "what was written is told")
            write(engine)
            assert poll.poll(1000 * LIMIT_S) and watch.read()
            engine.dispose()  # the log goes with the last connection
            watch.read()


@on_linux
def test_commit_that_can_be_seen_long_after_it_was_written_ends_the_wait(path: Path) -> None:
    with waiting(path) as wait, contextlib.closing(sqlite3.connect(path, isolation_level=None)) as writer:
        writer.execute("PRAGMA cache_size = 1")
        writer.execute("BEGIN IMMEDIATE")
        writer.executemany("INSERT INTO notes VALUES (?)", [["a" * 4000]] * 200)  # most of its pages are in the log
        assert wait.wakeup.wait(0.3, lambda: False) is None
        assert not wait.wakeup.committed()
        writer.execute("COMMIT")
        assert wait.is_ended_by_a_commit()


@on_linux
def test_log_that_cannot_be_watched_any_more_is_looked_at_instead(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: LogWatch) -> None:
        raise OSError(errno.ENOSPC, "no watch is left")

    with waiting(path) as wait:
        wait.wakeup.wait(0, lambda: False)
        monkeypatch.setattr(LogWatch, "_follow", refuse)
        beside(path, "-wal").unlink()
        beside(path, "-wal").touch()  # somebody makes it anew
        wait.wakeup.wait(0.2, lambda: False)
        looks = wait.looks
        wait.wakeup.wait(1, lambda: False)
        assert wait.looks - looks > 10


@on_linux
def test_rings_and_other_files_do_not_put_off_the_look_for_a_commit_that_is_being_flushed(path: Path) -> None:
    log = beside(path, "-wal")
    log.touch()
    commits = [0]
    with Wakeup(queue.Queue(), lambda: commits[0], lambda: LogWatch(log)) as wakeup:
        log.write_bytes(b"written, and not yet to be seen")

        def disturb() -> None:
            for number in range(40):
                wakeup.ring()
                (path.parent / f"other-{number}").touch()
                time.sleep(0.002)
            commits[0] = 1

        disturbed = soon(disturb)
        began = time.monotonic()
        wakeup.wait(2 * LIMIT_S, lambda: False)
        assert time.monotonic() - began < LIMIT_S
        disturbed.join()


@on_linux
def test_log_that_was_made_anew_is_watched_although_the_queue_of_events_was_full(path: Path) -> None:
    most = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    log = beside(path, "-wal")
    log.touch()
    with contextlib.closing(LogWatch(log)) as watch:
        for number in range(most + 1):
            (path.parent / f"other-{number}").touch()
        log.unlink()
        log.touch()
        watch.read()
        log.write_bytes(b"a commit")
        until(watch.read, "what was written is told")


def test_journal_that_a_commit_removes_is_not_watched(tmp_path: Path) -> None:
    engine = create_engine(f"sqlite:///{tmp_path / 'app.db'}")
    store = Store(engine)
    assert store.dialect.watch(store.run, engine) is None
    store.close()
    engine.dispose()


@on_linux
def test_relay_without_a_watch_looks_for_commits_and_says_so(
    path: Path, monkeypatch: pytest.MonkeyPatch, said: list[str]
) -> None:
    def none_left(*_: object, **__: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr("inotify_simple.INotify.__init__", none_left)
    engine = application(path)
    with waiting(path, watched=False) as wait:
        assert len([line for line in said if line.startswith("WARNING commits cannot be watched: Too many")]) == 1
        soon(write, engine)
        assert wait.is_ended_by_a_commit()
