"""Waiting, after a commit, until what the transaction wrote is delivered."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Final

from sqlalchemy import Connection, Engine, select
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session
from sqlalchemy.util import await_only

from outbox.errors import SyncFailed, SyncTimeout, shortened
from outbox.settings import load
from outbox.store import models, pauses
from outbox.store.models import State
from outbox.store.store import dialect_of
from outbox.write.journal import Journal, bind_of, journal_of, last_journal

FIRST_PAUSE_S: Final = 0.002
LONGEST_PAUSE_S: Final = 0.05
RELAY_RUNNING: Final = "is a relay running? 'outbox-relay status' says what waits and why"


def wait_until_synced(session: Session, timeout: float, *, searchable: bool) -> dict[int, str]:
    """See `OutboxRepository.wait_until_synced`."""
    journal = last_journal(session)
    if (journal and journal.root.is_active) or _holds_lock(session):
        raise SyncFailed(
            "the transaction is not committed, or the session has begun another one, which keeps the relay from "
            "the write lock; call wait_until_synced() right after session.commit()"
        )
    if journal is None or not journal.written:
        return {}
    outcomes, indexes = _Written(session, journal).wait(time.monotonic() + timeout, timeout)
    if searchable and indexes:
        from outbox import destinations  # not above: the write side loads no search engine's client

        destination = destinations.destination_of(load())
        try:
            for name in sorted(indexes):
                destination.refresh(name)
        finally:
            destination.close()
    return outcomes


def _holds_lock(session: Session) -> bool:
    """Whether it has begun a transaction that keeps relays from their work; one that has only read does not."""
    if not session.in_transaction():
        return False
    connection = journal_of(session).connection
    return dialect_of(connection).is_locked(connection)


def _paused(connection: Connection, waiting: Sequence[Any]) -> str | None:
    """What keeps relays from some of these rows by an operator's will, and how to end it."""
    try:
        paused = pauses.current(connection.exec_driver_sql)
    except DBAPIError:  # tables of an earlier version
        return None
    for each in paused:
        if any(each.holds(row.index_name, row.tenant_id) for row in waiting):
            return f"{each.what} is paused ({each.reason}): '{each.remedy}' lets relays deliver them"
    return None


class _Written:
    """The rows of a journal, looked at over a connection of their own that takes no write lock."""

    def __init__(self, session: Session, journal: Journal) -> None:
        bind: Engine | Connection = bind_of(session)
        self._engine = bind.engine.execution_options(outbox_begin="DEFERRED")
        self._first = min(ids[0] for ids, _ in journal.written)
        self._last = max(ids[-1] for ids, _ in journal.written)
        self._by_session = {
            (at, created_at) for ids, created_at in journal.written if created_at is not None for at in ids
        }
        self._by_triggers = {at for ids, created_at in journal.written if created_at is None for at in ids}
        self._number = len(self._by_triggers | {at for at, _ in self._by_session})

    def wait(self, deadline: float, timeout: float) -> tuple[dict[int, str], set[str]]:
        """The outcomes of the rows, once all are delivered, and the indexes they went to."""
        pause = FIRST_PAUSE_S
        with self._engine.connect() as connection:
            while waiting := self._unfinished(connection):
                if time.monotonic() >= deadline:
                    raise SyncTimeout(
                        f"{len(waiting):,} of {self._number:,} rows are not delivered after {timeout:g} s; "
                        f"{_paused(connection, waiting) or RELAY_RUNNING}"
                    )
                self._sleep(min(pause, max(0.0, deadline - time.monotonic())))
                pause = min(pause * 2, LONGEST_PAUSE_S)
            done = self._look(connection)
        return {row.id: row.outcome for row in done}, {row.index_name for row in done}

    def _unfinished(self, connection: Connection) -> Sequence[Any]:
        unfinished = self._look(connection, models.events.c.state != State.DONE.value)
        dead = [row for row in unfinished if row.state == State.DEAD]
        if dead:
            first = dead[0]
            raise SyncFailed(
                f"{len(dead):,} of {self._number:,} rows are dead, the first is {first.id} of "
                f"{first.index_name}/{shortened(first.document_id)} ({first.error_type}: {first.error}); "
                "see 'outbox-relay dead list'"
            )
        return unfinished

    def _look(self, connection: Connection, *conditions: Any) -> Sequence[Any]:
        table = models.events
        found = connection.execute(select(table).where(table.c.id.between(self._first, self._last), *conditions)).all()
        connection.rollback()  # the next look shall see what was committed meanwhile
        return [row for row in found if (row.id, row.created_at) in self._by_session or row.id in self._by_triggers]

    def _sleep(self, seconds: float) -> None:
        if self._engine.dialect.is_async:
            import asyncio  # not above: only such applications load it

            await_only(asyncio.sleep(seconds))
        else:
            time.sleep(seconds)
