"""What `insert()`, `update()` and `delete()` of mapped classes change, as statements of a session, becomes rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, NamedTuple

from sqlalchemy import Connection, Result, select
from sqlalchemy.orm import Mapper, ORMExecuteState, Session

from outbox.entities.kinds import kind_attributes, same_hierarchy
from outbox.entities.links import Link
from outbox.errors import DatabaseUnavailable, InvalidName
from outbox.write import journal
from outbox.write.changes import (
    Identity,
    Place,
    dependents_of,
    is_locked_by_rows,
    key_names,
    lock_rows,
    note,
    note_dependents,
    places_of,
)
from outbox.write.coverage import Coverage
from outbox.write.plans import Known, Own, intersects, kinds_of, related

ATTEMPTS: Final = 5


def note_statement(known: Known, coverage: Coverage, state: ORMExecuteState) -> Result[Any] | None:
    """Carry out an `insert()`, `update()` or `delete()` of a mapped class and note what it changes.

    None: nothing that matters here, and it is not carried out yet.
    """
    mapper = state.bind_mapper
    if mapper is None:
        return None
    names = _assigned(state, mapper) if state.is_update else None
    own = [each for each in known.own if _is_about(mapper, each.entity.mapper, each.counts, names)]
    touched = [link for link in known.links if _is_about(mapper, link.target, link.counts, names)]
    if not own and not touched:
        return None
    session = state.session
    journal.lock(session)  # before the first look: what is read here must be true when the statement is carried out
    if aside := coverage.of(session):
        own = [each for each in own if each.entity not in aside]
        touched = [link for link in touched if link.entity not in aside]
        if not own and not touched:
            return None
    session._autoflush()  # as SQLAlchemy is about to: not in a flush, whose listeners may execute statements
    if state.is_insert:
        identities, result = _with_keys(state, mapper)
        _note_rows(known, session, own, touched, identities, [], None)
        return result
    moving = [each.entity for each in own if state.is_delete or _may_move(each, names)]
    linking = [link for link in touched if state.is_delete or intersects(link.linking, names)]
    connection = session.connection(bind_arguments=dict(state.bind_arguments))
    by_rows = is_locked_by_rows(connection, mapper)
    lock = by_rows and bool(moving or linking)

    def carry_out() -> _Change:
        identities = _targets(state, mapper, connection, lock=lock)
        looked, before = len(identities), list[Place]()
        for entity in moving:
            before += places_of(session, entity, identities)
        for link in linking:
            before += dependents_of(session, link, identities)
        if state.is_update and not _is_bulk(state) and (by_rows or intersects(frozenset(key_names(mapper)), names)):
            identities, result = _with_keys(state, mapper)
            return _Change(identities, before, result, beyond=len(identities) > looked)
        result = state.invoke_statement()
        return _Change(identities, before, result, beyond=getattr(result, "rowcount", 0) > looked)

    change = _repeated(connection, carry_out) if lock and not _is_bulk(state) else carry_out()
    if state.is_delete:
        note(session, change.before)
    else:
        _note_rows(known, session, own, touched, change.identities, change.before, names)
    return change.result


class _Change(NamedTuple):
    identities: Sequence[Identity]  # of the rows, as they are now
    before: list[Place]  # that documents may have left
    result: Result[Any]
    beyond: bool  # more rows than were looked at before, which others have made meanwhile


def _repeated(connection: Connection, carry_out: Callable[[], _Change]) -> _Change:
    """Until it is about rows that were looked at, and no others: where the documents of those were is not known."""
    for _ in range(ATTEMPTS):
        with connection.begin_nested() as savepoint:
            change = carry_out()
            if not change.beyond:
                return change
            savepoint.rollback()
    raise DatabaseUnavailable(
        f"a statement has met new rows {ATTEMPTS} times that other transactions committed while it was carried out; "
        "roll the transaction back, and try again"
    )


def _may_move(own: Own, names: frozenset[str] | None) -> bool:
    """Whether an update of these attributes may take documents from where they are."""
    moves = None if own.moves is None else own.moves | kinds_of(own.entity) | set(own.entity.key)
    return intersects(moves, names)


def _is_about(
    mapper: Mapper[Any], other: Mapper[Any], counts: frozenset[str] | None, names: frozenset[str] | None
) -> bool:
    """Whether a statement about one mapped class may change what counts of another; `names`: what it sets."""
    if related(mapper, other):
        return intersects(counts, names)
    return same_hierarchy(mapper, other) and intersects(kind_attributes(mapper), names)


def _note_rows(
    known: Known,
    session: Session,
    own: Iterable[Own],
    touched: Iterable[Link],
    identities: Sequence[Identity],
    before: Sequence[Place],
    names: frozenset[str] | None,
) -> None:
    places, refused = list(before), list[InvalidName]()
    for each in own:
        places += places_of(session, each.entity, identities, refused)
    note(session, places)
    for link in touched:
        moved = identities if intersects(link.linking, names) else ()
        note_dependents(session, known.insert_of(link), link, identities, moved)
    if refused:
        raise refused[0]  # what is not at fault is noted, should the application go on


def _is_bulk(state: ORMExecuteState) -> bool:
    """One `update()` with many dicts, each with the primary key of its row."""
    return isinstance(state.parameters, list)


def _assigned(state: ORMExecuteState, mapper: Mapper[Any]) -> frozenset[str] | None:
    """The attributes that an `update()` sets; None if that cannot be told."""
    statement: Any = state.statement
    given = [*(statement._values or ()), *(pair[0] for pair in getattr(statement, "_ordered_values", None) or ())]
    names = set()
    for each in given:
        name = each if isinstance(each, str) else getattr(each, "key", None)
        prop = None if name is None else _property_named(mapper, name, each)
        if prop is None:
            return None
        names.add(prop)
    parameters: Any = state.parameters if _is_bulk(state) else [state.parameters or {}]
    for name in {name for each in parameters for name in each}:
        if prop := _property_named(mapper, name, name):
            names.add(prop)
    return frozenset(names - (set(key_names(mapper)) if _is_bulk(state) else set()))


def _property_named(mapper: Mapper[Any], name: str, given: Any) -> str | None:
    """The mapped attribute of a name, or of a column."""
    if not isinstance(given, str):
        for prop in mapper.column_attrs:
            if any(column.shares_lineage(given) for column in prop.columns):
                return prop.key
    if name in mapper.synonyms:
        return mapper.synonyms[name].name
    if name in mapper.column_attrs:
        return name
    return next((prop.key for prop in mapper.column_attrs if any(c.key == name for c in prop.columns)), None)


def _targets(state: ORMExecuteState, mapper: Mapper[Any], connection: Connection, *, lock: bool) -> list[Identity]:
    """The primary keys of the rows that an `update()` or `delete()` is about, asked with its own criteria; locked from
    now on, if that is asked for."""
    names = key_names(mapper)
    if _is_bulk(state):
        parameters: Any = state.parameters
        identities = [tuple(each[name] for name in names) for each in parameters]
        if lock:
            lock_rows(state.session, mapper, identities)
        return identities
    statement: Any = state.statement
    keys = [getattr(mapper.class_, name) for name in names]
    # As SQLAlchemy's own synchronize_session="fetch" does it; past the session, whose listeners may leave rows out.
    targets = select(*keys).select_from(mapper).options(*statement._with_options)
    if statement.whereclause is not None:
        targets = targets.where(statement.whereclause)
    if lock:
        targets = targets.with_for_update(key_share=True, of=[*mapper.tables])
    found = connection.execute(targets, state.parameters or {})
    return list(dict.fromkeys(tuple(row) for row in found))


def _with_keys(state: ORMExecuteState, mapper: Mapper[Any]) -> tuple[list[Identity], Result[Any]]:
    """Carry out an `insert()` or `update()` that returns the primary keys too; its caller sees nothing of them."""
    statement: Any = state.statement
    # An update returns columns of its own table alone, which may call the key otherwise than the base does.
    is_of_a_part = state.is_update and mapper.local_table is not mapper.base_mapper.local_table
    names = key_names(mapper, mapper.local_table.primary_key if is_of_a_part else None)
    keys = [getattr(mapper.class_, name).label(f"outbox_key_{at}") for at, name in enumerate(names)]
    result = state.invoke_statement(statement=statement.returning(*keys))
    own = len(result.keys()) - len(keys)
    frozen = result.freeze()
    found = [tuple(row) for row in frozen().all()]
    identities = [row[own:] for row in found]
    if own:
        returned = frozen()
        return identities, returned.columns(*range(own))
    said: Any = result  # it has no rows left, as if there had been none
    said.rowcount = len(found)
    if state.is_insert:
        said.inserted_primary_key_rows = identities
        said.inserted_primary_key = identities[0] if identities else None
    return identities, result
