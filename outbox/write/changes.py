"""Which documents a change is about, and one row for each of them.

A document has one row a transaction and savepoint; a second one, if it changes after it was noted as made of another
row that changed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final
from weakref import WeakKeyDictionary, WeakSet

from sqlalchemy import ColumnElement, Connection, Engine, Insert, Table, inspect, select, update
from sqlalchemy.orm import InstanceState, Mapper, PassiveFlag, Session

from outbox.entities.entity import Entity
from outbox.entities.keys import DocumentKey, among, portions
from outbox.entities.links import Link
from outbox.errors import ConfigurationError, InvalidName
from outbox.store.dialect import Row
from outbox.store.models import Action, now_ms
from outbox.store.store import dialect_of, is_supported
from outbox.write.journal import Journal, journal_of, open_journal

UNLOADED: Final = PassiveFlag.PASSIVE_NO_INITIALIZE
"""Of an attribute's history, what is known without asking the database."""

_REFRESH: Final = Action.REFRESH.value
_TOGETHER: Final = "outbox.entities_in_its_database"
_LOOKED_AT: Final[WeakKeyDictionary[Engine, WeakSet[Entity]]] = WeakKeyDictionary()
_WRITES: Final[WeakKeyDictionary[Mapper[Any], dict[str, Any]]] = WeakKeyDictionary()
Identity = tuple[Any, ...]
Place = tuple[Entity, DocumentKey]


def note(session: Session, places: Sequence[Place]) -> None:
    """A row for each document that has none yet in this transaction, or in the savepoint that is open."""
    if not places:
        return
    journal, created_at = journal_of(session), now_ms()
    for entity in {entity for entity, _ in places}:
        refuse_translated(journal.connection.get_execution_options(), entity.mapper)
        _require_one_database(session, journal, entity)
    wanted = {
        (entity.name, key[0], key[1]): (_REFRESH, key[0], key[1], key[2], entity.name, 0, created_at)
        for entity, key in places
    }
    journal.insert([wanted[each] for each in journal.fresh(wanted)])


def note_dependents(
    session: Session, statement: Insert, link: Link, identities: Iterable[Identity], moved: Iterable[Identity]
) -> None:
    """Rows for all documents that are made of these rows, found by the database itself: see `Known.insert_of`.

    `moved`: those of which other documents may be made than at their last change in this transaction.
    """
    journal = journal_of(session)
    refuse_translated(journal.connection.get_execution_options(), link.target)
    _require_one_database(session, journal, link.entity)
    number = journal.overruled.setdefault(link, 0)
    journal.forget((link, identity, number) for identity in moved)
    wanted = dict.fromkeys([(link, identity, number) for identity in identities])
    fresh = [identity for _, identity, _ in journal.fresh(wanted)]
    if not dialect_of(journal.connection).ids_follow_commits:
        journal.made_of.setdefault(link, set()).update(fresh)
    _insert_dependents(journal, statement, link, fresh)


def note_rows_of_application(session: Session, journal: Journal, rows: Iterable[Row]) -> None:
    """Have changes noted anew that come after these rows: what was noted of their documents before says less."""
    if not journal.noted:
        return
    for _, index, document_id, _, name, _, _ in rows:
        for entity in session.info.get(_TOGETHER, ()):
            if entity.name != name and entity.index_names(index):
                journal.forget([(entity.name, index, document_id)])
        for link in journal.overruled:  # which of its notes led to the document, the database alone could tell
            if link.entity.name != name and link.entity.index_names(index):
                journal.overruled[link] += 1


def note_late_dependents(session: Session, statement_of: Callable[[Link], Insert]) -> None:
    """At the end of a transaction look once more for documents that are made of what it has changed, where many write
    at a time.

    Others may have made such documents since the first look, and have had them delivered as the database was then.
    Those of who commits after this look are read when this transaction has ended: a relay waits for all that have
    announced their end before it reads what documents are made of.
    """
    journal = open_journal(session)
    if journal is None or not journal.made_of:
        return
    dialect_of(journal.connection).announce_end(journal.connection)
    for link, identities in journal.made_of.items():
        _insert_dependents(journal, statement_of(link), link, list(identities))


def _insert_dependents(journal: Journal, statement: Insert, link: Link, identities: Sequence[Identity]) -> None:
    for part in _portions(link.target, identities):
        created_at = now_ms()
        parameters = {"identities": _flat(part), "created_at": created_at, "since": journal.since}
        journal.insert_selected(statement, parameters, created_at)


def _require_one_database(session: Session, journal: Journal, entity: Entity) -> None:
    """Raises `ConfigurationError` where an entity and its outbox rows would be committed apart."""
    together = session.info.setdefault(_TOGETHER, set())
    if entity in together:
        return
    engine, own = session.get_bind(**where_written(entity.mapper)).engine, journal.connection.engine
    if engine.pool is not own.pool:
        raise ConfigurationError(
            f"entity {entity.name!r} is in the database {engine.url.database}, and the outbox tables of its session "
            f"are in {own.url.database}, so that the two cannot commit together: bind the outbox tables "
            "(outbox.models.metadata) to the database of the entity, through the same engine"
        )
    _check_view(journal.connection, entity)
    together.add(entity)


def refuse_translated(options: Mapping[str, Any], mapper: Mapper[Any]) -> None:
    """Raises `ConfigurationError` where execution options put a class, or the outbox, where no relay looks."""
    if translated := options.get("schema_translate_map"):
        for schema in (None, *(table.schema for table in mapper.tables)):
            if (other := translated.get(schema, schema)) != schema:
                raise ConfigurationError(
                    f"{mapper.class_.__name__} is written with the schema_translate_map {{{schema!r}: {other!r}}}, of "
                    "which relays know nothing: they would look for its rows in another schema; name the schema in its "
                    "model, or set the search_path of application and relay"
                )


def where_written(mapper: Mapper[Any]) -> dict[str, Any]:
    """How to ask a session for the database where it writes objects of a class: it may read from another one."""
    write = _WRITES.get(mapper)
    if write is None:
        table = mapper.local_table
        write = _WRITES[mapper] = {"clause": update(table)} if isinstance(table, Table) else {}
    return {"mapper": mapper, **write}


def _check_view(connection: Connection, entity: Entity) -> None:
    """Raises `ConfigurationError` for a view that is not known as one, so that rows would leave it unseen."""
    looked = _LOOKED_AT.setdefault(connection.engine, WeakSet())
    by_key = all(tuple(_names(each.via)) == entity.key for each in entity.depends_on.values())
    if by_key or entity.is_view or entity in looked:
        return
    table: Any = entity.mapper.local_table
    if getattr(table, "name", None) in inspect(connection).get_view_names(getattr(table, "schema", None)):
        raise ConfigurationError(
            f"entity {entity.name!r}: {table.name} is a view; say so in its model, so that rows which leave it are "
            "noticed: Table(…, info={'is_view': True})"
        )
    looked.add(entity)


def _names(via: str | Sequence[str]) -> Sequence[str]:
    return [via] if isinstance(via, str) else via


def former_identity(state: InstanceState[Any]) -> Identity:
    """The primary key of an object as the database knew it before the flush."""
    return () if state.key is None else state.key[1]


def current_identity(values: Mapping[str, Any], key: Sequence[str]) -> Identity:
    """The primary key that an object has now."""
    return tuple([values.get(name) for name in key])


def tenant_of(entity: Entity, values: Mapping[str, Any]) -> Any:
    """The tenant that an object has now."""
    return None if entity.tenant is None else values.get(entity.tenant)


def former_place(entity: Entity, identity: Identity, tenant: Any) -> list[Place]:
    """The place that a document leaves; none, if it cannot have been there. An illegal tenant may be a later one."""
    for each in (tenant, None):
        with suppress(InvalidName):
            return [(entity, entity.key_of(identity, each))]
    return []


def remembered_places(state: InstanceState[Any], entity: Entity) -> list[Place]:
    """The places of an object's row, by what the session remembers of its tenant and its `_id`."""
    identities: Iterable[Identity] = [former_identity(state)]
    if entity.id_key != entity.key:
        identities = [(value,) for value in _remembered(state, entity.id_key[0])]
    tenants = (_remembered(state, entity.tenant) if entity.tenant else ()) or (None,)
    return [place for each in identities for tenant in tenants for place in former_place(entity, each, tenant)]


def _remembered(state: InstanceState[Any], attribute: str) -> Sequence[Any]:
    """What an attribute was; nothing if the session has not loaded it."""
    history = state.get_history(attribute, UNLOADED)
    return history.deleted or history.unchanged or ()


def places_of(
    session: Session, entity: Entity, identities: Sequence[Identity], refused: list[InvalidName] | None = None
) -> list[Place]:
    """Where the documents of these rows belong, by what the database says at this moment.

    `refused` gets the reasons why rows can have no place. Without it, the places are those that documents leave.
    """
    connection = session.connection(bind_arguments=where_written(entity.mapper))
    tenant = [] if entity.tenant is None else [entity.column(entity.tenant)]
    key, width = [entity.column(name) for name in entity.key], len(entity.id_key)
    found: list[Place] = []
    for part in _portions(entity.mapper, identities):
        statement = entity.rows(select(*entity.id_columns, *tenant)).where(among(key, part))
        for row in connection.execute(statement):
            tenant_id = row[width] if tenant else None
            if refused is None:
                found += former_place(entity, row[:width], tenant_id)
                continue
            try:
                found.append((entity, entity.key_of(row[:width], tenant_id)))
            except InvalidName as error:
                refused.append(error)
    return found


def lock_rows(session: Session, mapper: Mapper[Any], identities: Sequence[Identity]) -> None:
    """Keep rows as they are until the transaction ends, where other writers could change them beside it: what is read
    of them from here on stays true. They are about to be written anyway."""
    connection = session.connection(bind_arguments=where_written(mapper))
    if is_locked_by_rows(connection, mapper):
        for part in _portions(mapper, identities):
            keys = mapper.primary_key
            locking = select(*keys).select_from(mapper.persist_selectable).where(among(keys, part)).order_by(*keys)
            connection.execute(locking.with_for_update(key_share=True))


def is_locked_by_rows(connection: Connection, mapper: Mapper[Any]) -> bool:
    """Whether rows of a class have to be locked before they are looked at, and can be."""
    return not is_of_a_view(mapper) and is_supported(connection) and not dialect_of(connection).ids_follow_commits


def is_of_a_view(mapper: Mapper[Any]) -> bool:
    """Whether a table of a class is marked as a view, whose rows nobody can lock or return."""
    return any(table.info.get("is_view") for table in mapper.tables if isinstance(table, Table))


def dependents_of(session: Session, link: Link, identities: Sequence[Identity]) -> list[Place]:
    """The documents that are made of these rows."""
    connection = session.connection(bind_arguments=where_written(link.entity.mapper))
    return [
        (link.entity, DocumentKey(*row))
        for part in _portions(link.target, identities)
        for row in connection.execute(link.documents, {"identities": _flat(part)})
    ]


def key_names(mapper: Mapper[Any], columns: Iterable[ColumnElement[Any]] | None = None) -> list[str]:
    """The attributes of the primary key, or of `columns` that are one."""
    return [
        mapper.get_property_by_column(column).key for column in (mapper.primary_key if columns is None else columns)
    ]


def _portions(mapper: Mapper[Any], identities: Sequence[Identity]) -> Iterable[Sequence[Identity]]:
    """As many at a time as one statement takes, each once."""
    return portions(list(dict.fromkeys(identities)), len(mapper.primary_key))


def _flat(identities: Sequence[Identity]) -> list[Any]:
    return [identity[0] if len(identity) == 1 else identity for identity in identities]
