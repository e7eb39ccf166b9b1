"""What `insert()`, `update()` and `delete()` of mapped classes change, as statements of a session, becomes rows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final, NamedTuple

from sqlalchemy import (
    Column,
    Connection,
    CursorResult,
    Result,
    Select,
    SelectBase,
    TextClause,
    UpdateBase,
    select,
    tuple_,
)
from sqlalchemy.orm import ColumnProperty, FromStatement, Mapper, ORMExecuteState, Session
from sqlalchemy.orm.attributes import instance_state
from sqlalchemy.sql import visitors
from sqlalchemy.sql.functions import FunctionElement

from outbox.entities.entity import Entity
from outbox.entities.kinds import kind_attributes, same_hierarchy
from outbox.entities.links import Link
from outbox.errors import ConfigurationError, DatabaseUnavailable, InvalidName
from outbox.store.store import dialect_of
from outbox.write import journal
from outbox.write.changes import (
    Identity,
    Place,
    current_identity,
    dependents_of,
    former_place,
    is_locked_by_rows,
    is_of_a_view,
    key_names,
    lock_rows,
    note,
    note_dependents,
    places_of,
    refuse_translated,
    tenant_of,
)
from outbox.write.coverage import Coverage
from outbox.write.plans import Known, Own, intersects, kinds_of, related

ATTEMPTS: Final = 5
MOST_KEYS: Final = 1_000
"""By which a statement is carried out in place of its criteria."""


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
    # Before the first look: what is read here must be true when the statement is carried out.
    connection = journal.lock(session)
    if aside := coverage.of(session):
        own = [each for each in own if each.entity not in aside]
        touched = [link for link in touched if link.entity not in aside]
        if not own and not touched:
            return None
    dialect_of(connection).require_transaction(connection)
    refuse_translated(state.execution_options, mapper)
    session._autoflush()  # as SQLAlchemy is about to: not in a flush, whose listeners may execute statements
    if state.is_insert:
        identities, result = _with_keys(state, mapper)
        _note_rows(known, session, own, touched, identities, [], None)
        return result
    moving = [each for each in own if state.is_delete or _may_move(each, names)]
    linking = [link for link in touched if state.is_delete or intersects(link.linking, names)]
    if _returns_rows(state, mapper) and not linking:
        if state.is_delete and all(_is_told_by(mapper, each) for each in moving):
            places, result = _with_places(state, mapper, [each.entity for each in moving])
            note(session, places)
            return result
        if not moving:
            identities, result = _with_keys(state, mapper)
            _note_rows(known, session, own, touched, identities, [], names)
            return result
    change = _after_a_look(state, mapper, [each.entity for each in moving], linking, names)
    if state.is_delete:
        note(session, change.before)
    else:
        _note_rows(known, session, own, touched, change.identities, change.before, names)
    return change.result


class _Change(NamedTuple):
    identities: Sequence[Identity]  # of the rows, as they are now
    before: list[Place]  # that documents may have left
    result: Result[Any]


def _after_a_look(
    state: ORMExecuteState,
    mapper: Mapper[Any],
    moving: Sequence[Entity],
    linking: Sequence[Link],
    names: frozenset[str] | None,
) -> _Change:
    """Carry out an `update()` or `delete()` when it is known where the documents of its rows are.

    Criteria may mean other rows a moment later. Where they may do so by themselves, the statement is carried out for
    the rows that were looked at; and otherwise, or where that cannot be said, until it is about no others.
    """
    _require_criteria_that_write_nothing(state)
    session = state.session
    connection = session.connection(bind_arguments=dict(state.bind_arguments))
    by_rows = is_locked_by_rows(connection, mapper)
    changes_keys = state.is_update and not _is_bulk(state) and intersects(frozenset(key_names(mapper)), names)
    returns_keys = changes_keys or _returns_rows(state, mapper) or (state.is_update and by_rows and _is_select(state))
    needs_look = bool(moving or linking or not returns_keys)
    is_unsure = changes_keys or _is_of_an_alias(state, mapper) or _may_mean_others(_dml(state).whereclause)
    by_keys = needs_look and is_unsure and not is_of_a_view(mapper)
    lock = by_rows and bool(moving or linking or by_keys)
    for _ in range(ATTEMPTS):
        looked = _targets(state, mapper, connection, lock=lock)
        before = [place for entity in moving for place in places_of(session, entity, looked)]
        before += [place for link in linking for place in dependents_of(session, link, looked)]
        if by_keys and (narrowed := _narrowed(state, mapper, looked)) is not None:
            if returns_keys:
                identities, result = _with_keys(state, mapper, narrowed)
            else:
                identities, result = looked, state.invoke_statement(statement=narrowed)
            return _Change(identities, before, result)
        if _is_bulk(state) or not (lock or returns_keys):
            return _Change(looked, before, state.invoke_statement())
        with connection.begin_nested() as savepoint:
            identities, result = _with_keys(state, mapper) if returns_keys else (looked, state.invoke_statement())
            are_more = max(len(identities), getattr(result, "rowcount", 0)) > len(looked)
            if not needs_look or (not are_more and (changes_keys or set(identities) <= set(looked))):
                return _Change(identities, before, result)
            savepoint.rollback()
    raise DatabaseUnavailable(
        f"a statement has met other rows {ATTEMPTS} times than right before, since other transactions were committed "
        "while it was carried out, or its criteria mean others each time; roll the transaction back, and try again"
    )


def _may_mean_others(criteria: Any) -> bool:
    """Whether criteria ask for more than columns and values, so that they may mean other rows a moment later: by
    `random()`, the clock, `SKIP LOCKED` … A function of theirs may do something, too, and is called once."""
    return criteria is not None and any(
        isinstance(each, FunctionElement | SelectBase | TextClause) or getattr(each, "is_literal", False)
        for each in visitors.iterate(criteria)
    )


def _require_criteria_that_write_nothing(state: ORMExecuteState) -> None:
    """Raises `ConfigurationError`: whoever looks by such criteria writes, too."""
    statement = _dml(state)
    criteria = statement.whereclause
    if criteria is not None and any(isinstance(each, UpdateBase) for each in visitors.iterate(criteria)):
        kind, entity = type(statement).__name__.lower(), statement.entity_description["name"]
        raise ConfigurationError(
            f"the criteria of {kind}({entity}) hold an insert(), update() or delete(), and are asked before it is "
            "carried out, since documents leave their places by it: execute that statement first, and give this one "
            "what it returns"
        )


def _narrowed(state: ORMExecuteState, mapper: Mapper[Any], identities: Sequence[Identity]) -> Any:
    """The statement with these rows in place of its criteria. None: it cannot do without those, or the rows are too
    many."""
    statement = _dml(state)
    if state.parameters or len(identities) * len(mapper.primary_key) > MOST_KEYS:  # all parameters have to be used
        return None
    if len(_rows_of(statement, mapper).get_final_froms()) > 1:
        return None
    keys = _keys(state, mapper)
    same = keys[0].in_([each[0] for each in identities]) if len(keys) == 1 else tuple_(*keys).in_(identities)
    narrowed = statement._generate()
    narrowed._where_criteria = ()
    narrowed = narrowed.where(same)
    if not _is_select(state):
        return narrowed
    asked: Any = state.statement
    asked = asked._generate()
    asked.element = narrowed
    return asked


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


def _is_select(state: ORMExecuteState) -> bool:
    """A `select(…).from_statement(…)`."""
    return isinstance(state.statement, FromStatement)


def _is_of_an_alias(state: ORMExecuteState, mapper: Mapper[Any]) -> bool:
    return _dml(state).entity_description["entity"] is not mapper.class_


def _returns_rows(state: ORMExecuteState, mapper: Mapper[Any]) -> bool:
    """Whether an `update()` or `delete()` can say by itself which rows it was about."""
    if _is_bulk(state) or _is_select(state) or is_of_a_view(mapper):
        return False
    # What an update of an alias returns, SQLAlchemy 2.0.30 writes as of the table.
    return not _is_of_an_alias(state, mapper) and not _dml(state)._return_defaults


def _is_told_by(mapper: Mapper[Any], own: Own) -> bool:
    """Whether each row that a `delete()` of the class returns is one of the entity, and says where its document is."""
    entity = own.entity
    named = [mapper.attrs.get(name) for name in entity.placed_by]
    columns = [prop.columns[0] if isinstance(prop, ColumnProperty) else None for prop in named]
    is_whole = all(isinstance(each, Column) and each.table is mapper.local_table for each in columns)
    return is_whole and not own.may_move and mapper.isa(entity.mapper)


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
    targets = _rows_of(_dml(state), mapper)
    if lock:
        entity = _dml(state).entity_description["entity"]
        targets = targets.with_for_update(key_share=True, of=[*mapper.tables] if entity is mapper.class_ else [entity])
    each_time = parameters if _is_bulk(state) else [parameters or {}]
    return list(dict.fromkeys(tuple(row) for given in each_time for row in connection.execute(targets, given)))


def _rows_of(statement: Any, mapper: Mapper[Any]) -> Select[Any]:
    """The primary keys of the rows that an `update()` or `delete()` is about."""
    entity = statement.entity_description["entity"]  # of an aliased class, the alias
    keys = [getattr(entity, name) for name in key_names(mapper)]
    # As SQLAlchemy's own synchronize_session="fetch" does it; past the session, whose listeners may leave rows out.
    rows = select(*keys).select_from(entity).options(*statement._with_options)
    return rows if statement.whereclause is None else rows.where(statement.whereclause)


def _keys(state: ORMExecuteState, mapper: Mapper[Any]) -> list[Any]:
    """The primary key of a class, as its statements know it: those of a part of it have columns of their own table
    alone, which may call the key otherwise than the base does."""
    is_of_a_part = not state.is_insert and mapper.local_table is not mapper.base_mapper.local_table
    names = key_names(mapper, mapper.local_table.primary_key if is_of_a_part else None)
    return [getattr(_dml(state).entity_description["entity"], name) for name in names]


def _with_places(
    state: ORMExecuteState, mapper: Mapper[Any], entities: Iterable[Entity]
) -> tuple[list[Place], Result[Any]]:
    """Carry out a `delete()` that returns where the documents of its rows were."""
    places: list[Place] = []
    names = list(dict.fromkeys(name for entity in entities for name in entity.placed_by))
    rows, result = _returning(state, state.statement, [getattr(mapper.class_, name) for name in names])
    for row in rows:
        values = dict(zip(names, row, strict=True))
        for entity in entities:
            places += former_place(entity, current_identity(values, entity.id_key), tenant_of(entity, values))
    return places, result


def _with_keys(state: ORMExecuteState, mapper: Mapper[Any], narrowed: Any = None) -> tuple[list[Identity], Result[Any]]:
    """Carry out a statement that returns the primary keys too."""
    statement: Any = state.statement if narrowed is None else narrowed
    if isinstance(statement, FromStatement):
        return _with_objects(state, mapper, statement)
    if statement._return_defaults:
        result: Any = state.invoke_statement()
        return [tuple(row) for row in result.inserted_primary_key_rows], result
    return _returning(state, statement, _keys(state, mapper))


def _returning(state: ORMExecuteState, statement: Any, columns: Sequence[Any]) -> tuple[list[Identity], Result[Any]]:
    """Carry out a statement that returns these columns too; its caller sees nothing of them."""
    labelled = [column.label(f"outbox_key_{at}") for at, column in enumerate(columns)]
    result: Any = state.invoke_statement(statement=statement.returning(*labelled))
    returned = list(result.keys()) if getattr(result, "returns_rows", True) else []
    own = len(returned) - len(columns)
    if returned[own:] != [column.key for column in labelled]:
        return [], result  # of what a listener of the application has carried out instead
    frozen = result.freeze()
    found = [tuple(row) for row in frozen().all()]
    identities = [row[own:] for row in found]
    if own:
        return identities, frozen().columns(*range(own))
    # It has no rows left, as if there had been none; nor had it when we have seen it before, in such a listener.
    result.rowcount = max(len(found), getattr(result, "rowcount", 0))
    if state.is_insert and not isinstance(result, CursorResult):  # which is asked by nobody who inserts that way
        result.returns_rows = False
        result.inserted_primary_key_rows = identities
        result.inserted_primary_key = identities[0] if identities else None
        result.lastrowid = identities[-1][0] if identities and len(columns) == 1 else None
    return identities, result


def _with_objects(
    state: ORMExecuteState, mapper: Mapper[Any], statement: FromStatement[Any]
) -> tuple[list[Identity], Result[Any]]:
    """The same of `select(Model).from_statement(…)`, which returns objects. Raises `ConfigurationError` if they are of
    another class."""
    for at, each in enumerate(statement.column_descriptions):
        if each["expr"] is each["entity"] and each["entity"] is mapper.class_:
            frozen = state.invoke_statement(statement=statement).freeze()
            states = [instance_state(row[at]) for row in frozen().all()]
            return [each.key[1] for each in states if each.key], frozen()
    raise ConfigurationError(
        f"select(…).from_statement(…) returns no {mapper.class_.__name__}, by which the rows that it writes could be "
        "noted: pass the insert() or update() itself to session.execute(), with its returning(…)"
    )
