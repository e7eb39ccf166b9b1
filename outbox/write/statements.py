"""What `insert()`, `update()` and `delete()` of mapped classes change, as statements of a session, becomes rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, NamedTuple

from sqlalchemy import Connection, CursorResult, Result, select
from sqlalchemy.orm import FromStatement, Mapper, ORMExecuteState, Session
from sqlalchemy.orm.attributes import instance_state

from outbox.entities.kinds import kind_attributes, same_hierarchy
from outbox.entities.links import Link
from outbox.errors import ConfigurationError, DatabaseUnavailable, InvalidName
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
    # What an update of an alias returns, SQLAlchemy 2.0.30 writes as of the table: its rows are locked instead.
    is_of_an_alias = _dml(state).entity_description["entity"] is not mapper.class_
    lock = by_rows and bool(moving or linking or is_of_an_alias)
    changes_keys = intersects(frozenset(key_names(mapper)), names)
    returns_keys = state.is_update and not _is_bulk(state) and (changes_keys or (by_rows and not is_of_an_alias))

    def carry_out() -> _Change:
        identities = _targets(state, mapper, connection, lock=lock)
        looked, before = len(identities), list[Place]()
        for entity in moving:
            before += places_of(session, entity, identities)
        for link in linking:
            before += dependents_of(session, link, identities)
        if returns_keys:
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


def _dml(state: ORMExecuteState) -> Any:
    """The `insert()`, `update()` or `delete()`, also of a `select(…).from_statement(…)`."""
    statement: Any = state.statement
    return statement.element if isinstance(statement, FromStatement) else statement


def _is_bulk(state: ORMExecuteState) -> bool:
    """One `update()` with many dicts, each with the primary key of its row."""
    return isinstance(state.parameters, list)


def _assigned(state: ORMExecuteState, mapper: Mapper[Any]) -> frozenset[str] | None:
    """The attributes that an `update()` sets; None if that cannot be told."""
    statement = _dml(state)
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
    parameters: Any = state.parameters
    by_criteria = state.execution_options.get("dml_strategy") == "core_only"
    if _is_bulk(state) and not by_criteria:
        keyed = [each for each in parameters if all(name in each for name in names)]  # SQLAlchemy refuses the others
        identities = [tuple(each[name] for name in names) for each in keyed]
        if lock:
            lock_rows(state.session, mapper, identities)
        return identities
    statement = _dml(state)
    entity = statement.entity_description["entity"]  # of an aliased class, the alias
    keys = [getattr(entity, name) for name in names]
    # As SQLAlchemy's own synchronize_session="fetch" does it; past the session, whose listeners may leave rows out.
    targets = select(*keys).select_from(entity).options(*statement._with_options)
    if statement.whereclause is not None:
        targets = targets.where(statement.whereclause)
    if lock:
        targets = targets.with_for_update(key_share=True, of=[*mapper.tables] if entity is mapper.class_ else [entity])
    each_time = parameters if _is_bulk(state) else [parameters or {}]
    return list(dict.fromkeys(tuple(row) for given in each_time for row in connection.execute(targets, given)))


def _with_keys(state: ORMExecuteState, mapper: Mapper[Any]) -> tuple[list[Identity], Result[Any]]:
    """Carry out an `insert()` or `update()` that returns the primary keys too; its caller sees nothing of them."""
    statement: Any = state.statement
    if isinstance(statement, FromStatement):
        return _with_objects(state, mapper, statement)
    if statement._return_defaults:
        result: Any = state.invoke_statement()
        return [tuple(row) for row in result.inserted_primary_key_rows], result
    # An update returns columns of its own table alone, which may call the key otherwise than the base does.
    is_of_a_part = state.is_update and mapper.local_table is not mapper.base_mapper.local_table
    names = key_names(mapper, mapper.local_table.primary_key if is_of_a_part else None)
    entity = statement.entity_description["entity"]
    keys = [getattr(entity, name).label(f"outbox_key_{at}") for at, name in enumerate(names)]
    result = state.invoke_statement(statement=statement.returning(*keys))
    own = len(result.keys()) - len(keys)
    frozen = result.freeze()
    found = [tuple(row) for row in frozen().all()]
    identities = [row[own:] for row in found]
    if own:
        returned = frozen()
        return identities, returned.columns(*range(own))
    result.rowcount = len(found)  # it has no rows left, as if there had been none
    if state.is_insert and not isinstance(result, CursorResult):  # which is asked by nobody who inserts that way
        result.returns_rows = False
        result.inserted_primary_key_rows = identities
        result.inserted_primary_key = identities[0] if identities else None
        result.lastrowid = identities[-1][0] if identities and len(keys) == 1 else None
    return identities, result


def _with_objects(
    state: ORMExecuteState, mapper: Mapper[Any], statement: FromStatement[Any]
) -> tuple[list[Identity], Result[Any]]:
    """The same of `select(Model).from_statement(…)`, which returns objects. Raises `ConfigurationError` if they are of
    another class."""
    for at, each in enumerate(statement.column_descriptions):
        if each["expr"] is each["entity"] and each["entity"] is mapper.class_:
            frozen = state.invoke_statement().freeze()
            states = [instance_state(row[at]) for row in frozen().all()]
            return [each.key[1] for each in states if each.key], frozen()
    raise ConfigurationError(
        f"select(…).from_statement(…) returns no {mapper.class_.__name__}, by which the rows that it writes could be "
        "noted: pass the insert() or update() itself to session.execute(), with its returning(…)"
    )
