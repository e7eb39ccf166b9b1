"""Who notes the changes of an entity: sessions, or triggers in the database.

The rule. An entity that has all of its triggers in a database is noted by them, and by no session. Which entities those
are depends on the schema alone, and the database numbers its schemas: they are looked up once for a number, and a flush
only asks for the number. What is remembered for an engine of SQLite is what was seen at the beginning of a transaction,
since a number that a transaction gives to a schema of its own is given to another one if it is rolled back; one with
another number than the remembered one looks them up at each flush. Where there are triggers, a transaction remembers
the highest id of the moment when it took the write lock (on PostgreSQL, an id below all that it has written): rows
beyond it are its own, and `wait_until_synced` waits for them too.
"""

from __future__ import annotations

import time
from typing import Any, Final, NamedTuple
from weakref import WeakKeyDictionary

from sqlalchemy import Connection, Engine
from sqlalchemy.orm import Session

from outbox.entities.entity import Entity
from outbox.entities.registry import EntityRegistry
from outbox.errors import ConfigurationError
from outbox.store.store import dialect_of, is_supported
from outbox.triggers import installer as triggers
from outbox.write import journal as journals

LOOK_EVERY_S: Final = 1.0
"""A database without triggers is asked at the beginning of a transaction once in that time. A flush notices at once
that others have installed some; but for rows of plain SQL in the meantime `wait_until_synced` does not wait."""


class _Schema(NamedTuple):
    """What was seen in a database at the beginning of a transaction."""

    token: int
    covered: frozenset[Entity]
    generation: int  # of the registry
    at: float


class _Beginning(NamedTuple):
    """The transaction of a session, and the highest id when it could write; None: it has not, or without triggers."""

    root: Any
    highest_id: int | None


class Coverage:
    """Which entities of a registry have all of their triggers in the database of a session."""

    def __init__(self, registry: EntityRegistry) -> None:
        self._registry = registry
        self._schemas: WeakKeyDictionary[Engine, _Schema] = WeakKeyDictionary()

    def begun(self, session: Session, transaction: Any, connection: Connection) -> None:
        """Note what the database is like before this transaction, if it had triggers or was not looked at of late.

        Where many write at a time nothing is asked here: the application's own statement may have to be the first of
        the transaction, as `SET TRANSACTION` and `LOCK TABLE` have to; see `committing`.
        """
        if not is_supported(connection):
            return
        journals.begun(session, transaction, connection)
        if not dialect_of(connection).ids_follow_commits or self._was_bare(connection.engine):
            return
        try:
            bind = journals.bind_of(session)
        except ConfigurationError:
            return  # the first change of an entity says so; what concerns no entity is not kept from anything
        if bind.engine is not connection.engine:
            return
        root = journals.journal_on(session, transaction, connection).root
        beginning: _Beginning | None = session.info.get(self)
        if beginning and beginning.root is root:
            return
        dialect = dialect_of(connection)
        token = dialect.schema_token_in(connection)
        # On a connection of its own, others have begun the transaction, and what they did is unknown.
        look = self._remembered if isinstance(bind, Engine) else self._covered
        covered = look(connection, token)
        session.info[self] = _Beginning(root, None)
        if covered:
            dialect.when_locked(connection, lambda: self._note_beginning(session, root, connection))

    def _was_bare(self, engine: Engine) -> bool:
        """Whether its database had no triggers a moment ago."""
        schema = self._schema(engine)
        return schema is not None and not schema.covered and time.monotonic() - schema.at < LOOK_EVERY_S

    def _note_beginning(self, session: Session, root: Any, connection: Connection) -> None:
        """Rows beyond the highest id are the transaction's own, once no other one can write."""
        session.info[self] = _Beginning(root, dialect_of(connection).highest_id_in(connection))

    def committing(self, session: Session) -> None:
        """Note which rows triggers have written in this transaction: `wait_until_synced` waits for them too."""
        beginning = self._beginning(session)
        if beginning is None:  # no look so far, in a transaction of plain SQL alone
            begun = journals.connection_begun(session)
            if (
                begun
                and not dialect_of(begun).ids_follow_commits
                and not self._was_bare(begun.engine)
                and journals.leads_to_outbox(session, begun)  # last, as it takes longest
            ):
                self.of(session)
                beginning = self._beginning(session)
        if beginning is None or beginning.highest_id is None:
            return
        journal = journals.journal_of(session)
        if journal.root is beginning.root:
            connection = journal.connection
            if ids := dialect_of(connection).written_since(connection, beginning.highest_id):
                journal.add(ids, None)
                session.info[self] = _Beginning(journal.root, ids[-1])

    def _beginning(self, session: Session) -> _Beginning | None:
        """What is noted of the transaction that goes on."""
        beginning: _Beginning | None = session.info.get(self)
        return beginning if beginning and beginning.root.is_active else None

    def of(self, session: Session) -> frozenset[Entity]:
        """The entities whose changes the database of a session notes by itself."""
        journal = journals.journal_of(session)
        connection = journal.connection
        if not is_supported(connection):
            return frozenset()
        dialect = dialect_of(connection)
        # Where many write at a time, what a transaction makes of the schema has a number that no other one is given.
        look = self._covered if dialect.ids_follow_commits else self._remembered
        covered = look(connection, dialect.schema_token_in(connection))
        if covered:
            beginning: _Beginning | None = session.info.get(self)
            if beginning is None or beginning.root is not journal.root or beginning.highest_id is None:
                session.info[self] = _Beginning(journal.root, dialect.highest_id_in(connection))
        return covered

    def _schema(self, engine: Engine) -> _Schema | None:
        """What is remembered."""
        schema = self._schemas.get(engine)
        return schema if schema and schema.generation == self._registry.generation else None

    def _remembered(self, connection: Connection, token: int) -> frozenset[Entity]:
        """Look, and remember what was seen."""
        schema = self._schema(connection.engine)
        covered = schema.covered if schema and schema.token == token else triggers.covered(connection, self._registry)
        self._schemas[connection.engine] = _Schema(token, covered, self._registry.generation, time.monotonic())
        return covered

    def _covered(self, connection: Connection, token: int) -> frozenset[Entity]:
        """Look in a transaction."""
        schema = self._schema(connection.engine)
        if schema and schema.token == token:
            return schema.covered
        self._schemas.pop(connection.engine, None)  # others have changed the schema, or this transaction itself
        return triggers.covered(connection, self._registry)
