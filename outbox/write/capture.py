"""Changes that a session makes to entities become `refresh` rows, in its own transaction.

What is seen: objects that are added, changed and deleted; their relationships, as far as documents are made of them;
and `insert()`, `update()`, `delete()` of mapped classes (`Query.update` and `.delete` as well).

What is not seen, since no session knows of it: `bulk_insert_mappings` and its sisters, statements on a `Table` or in
plain SQL, rows that the database changes by itself (`ON DELETE CASCADE`, triggers), an upsert that moves a row to
another tenant, and other programs. Call `OutboxRepository.refresh` beside those, or have the database note changes
by triggers (`outbox.triggers`): of an entity that has all of its triggers, nothing is noted here.

A document has one row a transaction and savepoint; a second one, if it changes after it was noted as made of another
row that changed. Rows are inserted in `after_flush`: only then are the entities written, so that the id of a row is
higher than that of any row whose transaction the entity's write waited for. Places that a document leaves are read
before the flush, from the database: what the session remembers may be older.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Final, NamedTuple

from sqlalchemy import (
    Connection,
    Engine,
    Insert,
    Result,
    Text,
    bindparam,
    event,
    insert,
    inspect,
    literal,
    select,
    tuple_,
)
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import (
    InstanceState,
    Mapper,
    ORMExecuteState,
    PassiveFlag,
    RelationshipProperty,
    Session,
    UOWTransaction,
)
from sqlalchemy.orm.attributes import instance_state

from outbox.entities.entity import Entity
from outbox.entities.keys import SHARED, DocumentKey, among, portions
from outbox.entities.links import Link, counted, links
from outbox.entities.registry import EntityRegistry
from outbox.errors import ConfigurationError, InvalidName, shortened
from outbox.settings import write_settings
from outbox.store import models
from outbox.store.models import EPOCH_STEP, Action, now_ms
from outbox.triggers import installer as triggers
from outbox.write import journal as rows

LOOK_EVERY_S: Final = 1.0
"""How long it may not be noticed at the beginning of a transaction that others have installed triggers. A flush notices
it at once; but for rows of plain SQL in the meantime `wait_until_synced` does not wait."""

_REFRESH: Final = Action.REFRESH.value
_UNLOADED = PassiveFlag.PASSIVE_NO_INITIALIZE
Identity = tuple[Any, ...]
Place = tuple[Entity, DocumentKey]


def _is_async_sessionmaker(sessions: Any) -> bool:
    """Asked only where SQLAlchemy's asyncio is in use: it cannot be imported without greenlet, which is optional."""
    asyncio = sys.modules.get("sqlalchemy.ext.asyncio")
    return asyncio is not None and isinstance(sessions, asyncio.async_sessionmaker)


class _Own(NamedTuple):
    """An entity, as its own objects see it."""

    entity: Entity
    counts: frozenset[str] | None  # attributes whose change makes the document anew; None: all
    moves: frozenset[str]  # attributes that say where the document stands


@dataclass(eq=False)
class _Plan:
    """What a change of an object of some class means."""

    own: tuple[_Own, ...]
    links: tuple[Link, ...]
    collections: tuple[tuple[str, Link], ...]  # whose new members may leave another object
    orphans: tuple[str, ...]  # relationships whose former members a flush may delete
    parents: frozenset[str]  # relationships without which it is deleted itself
    relationships: frozenset[str]
    equal: Mapping[str, Callable[[Any, Any], bool]]  # of each attribute that is a column

    @cached_property
    def is_empty(self) -> bool:
        return not (self.own or self.links or self.collections or self.orphans or self.parents)

    @cached_property
    def looks_before(self) -> bool:
        """Whether a flush may overwrite what says where documents stand."""
        return bool(self.links or self.collections or self.orphans or self.parents or any(o.moves for o in self.own))


class _Memo(dict[type[Any], _Plan | None]):
    """What a change of an object of a class means, found out once. None: nothing."""

    def __init__(self, find: Callable[[type[Any]], _Plan | None]) -> None:
        self._find = find

    def __missing__(self, class_: type[Any]) -> _Plan | None:
        found = self[class_] = self._find(class_)
        return found


class _Known:
    """What follows from a registry as it is: made anew when an entity is added, never changed under a thread."""

    def __init__(self, registry: EntityRegistry) -> None:
        self.generation = registry.generation
        self.own = [_Own(entity, counted(entity), _moves(entity)) for entity in registry]
        self.links = links(registry)
        self.looks_before = bool(self.links) or any(own.moves for own in self.own)
        self.has_collections = any(link.children for link in self.links)
        self.plans = _Memo(self._plan)
        self._left: dict[frozenset[Entity], _Memo] = {}
        self._inserts: dict[Link, Insert] = {}

    def _plan(self, class_: type[Any]) -> _Plan | None:
        mapper: Mapper[Any] = inspect(class_)
        relationships = mapper.relationships
        plan = _Plan(
            tuple(own for own in self.own if mapper.isa(own.entity.mapper)),
            tuple(link for link in self.links if mapper.isa(link.target)),
            tuple((link.children[1], link) for link in self.links if link.children and mapper.isa(link.children[0])),
            tuple(each.key for each in relationships if each.cascade.delete_orphan and self._looks_at(each.mapper)),
            frozenset(each.key for each in relationships if _keeps(each)) if self._looks_at(mapper) else frozenset(),
            frozenset(relationships.keys()),
            {each.key: each.columns[0].type.compare_values for each in mapper.column_attrs},
        )
        return None if plan.is_empty else plan

    def _looks_at(self, mapper: Mapper[Any]) -> bool:
        """Whether the deletion of such an object takes away what says where documents stand."""
        looked = [own.entity.mapper for own in self.own if own.moves] + [link.target for link in self.links]
        return any(_related(gone, each) for gone in _gone_with(mapper) for each in looked)

    def plans_without(self, aside: frozenset[Entity]) -> _Memo:
        """What is left of them where triggers note the changes of these entities."""
        if not aside:
            return self.plans
        left = self._left.get(aside)
        if left is None:
            left = self._left[aside] = _Memo(lambda class_: _less(self.plans[class_], aside))
        return left

    def insert_of(self, link: Link) -> Insert:
        """The statement that notes all documents of a link."""
        found = self._inserts.get(link)
        if found is None:
            found = self._inserts[link] = _insert_of(link)
        return found


class _Begun(NamedTuple):
    """What the database was like when a transaction began."""

    root: Any
    schema_version: int  # -1: not known for certain
    covered: frozenset[Entity]  # entities that have all of their triggers
    last_event_id: int | None  # whatever is beyond it at the end is the transaction's own; None: there are no triggers


class Capture:
    """The listeners of one registry."""

    def __init__(self, registry: EntityRegistry) -> None:
        self._registry = registry
        self._last_known = _Known(registry)
        self._watcher = triggers.Watcher(registry)
        self._flush = object()  # the key of what a session remembers from before a flush until after it

    def listen(self, sessions: Any) -> None:
        """Note what these sessions change from now on; see `EntityRegistry.capture`. Again changes nothing."""
        if _is_async_sessionmaker(sessions):
            # Their events are those of the session inside, of which each maker gets a class of its own.
            inside = sessions.kw.get("sync_session_class") or sessions.class_.sync_session_class
            own = type(f"Captured{inside.__name__}", (inside,), {})
            sessions.configure(sync_session_class=own)
            sessions = own
        target = getattr(sessions, "sync_session", sessions)
        for name, listener in (
            ("after_begin", self.after_begin),
            ("before_commit", self.before_commit),
            ("before_flush", self.before_flush),
            ("after_flush", self.after_flush),
            ("do_orm_execute", self.do_orm_execute),
        ):
            try:
                event.listen(target, name, listener)
            except (SQLAlchemyError, AttributeError):  # the latter from what has other events, as an engine has
                raise ConfigurationError(
                    f"{shortened(sessions)} makes no sessions; capture a sessionmaker, scoped_session, "
                    "async_sessionmaker or subclass of Session"
                ) from None

    def _known(self) -> _Known:
        known = self._last_known
        if known.generation != self._registry.generation:
            known = self._last_known = _Known(self._registry)
        return known

    # -- what triggers note -------------------------------------------------------------------------------------

    def after_begin(self, session: Session, transaction: Any, connection: Connection) -> None:
        """Note what the database is like before this transaction, if it had triggers or was not looked at of late."""
        if not write_settings().enabled or connection.dialect.name != "sqlite":
            return
        rows.begun(session, transaction, connection)
        seen = self._watcher.seen(connection.engine)
        if seen and not seen.covered and time.monotonic() - seen.at < LOOK_EVERY_S:
            return
        bind = rows.bind_of(session)
        if bind.engine is connection.engine:
            journal = rows.journal_on(session, transaction, connection)
            known: _Begun | None = session.info.get(self)
            if known is None or known.root is not journal.root:
                version = triggers.schema_version(journal)
                if isinstance(bind, Engine):  # else others have begun the transaction, and what it did is unknown
                    seen = self._watcher.remember(connection, version)
                session.info[self] = self._begun(journal, version, seen)

    def before_commit(self, session: Session) -> None:
        """Note which rows triggers have written in this transaction: `wait_until_synced` waits for them too."""
        if session.in_nested_transaction():
            return
        session.flush()  # as commit would do next
        begun: _Begun | None = session.info.get(self)
        if begun is None or begun.last_event_id is None or not begun.root.is_active:
            return
        journal = rows.journal_of(session)
        if journal.root is begun.root:
            last = triggers.last_event_id(journal)
            if number := last - begun.last_event_id:
                journal.add(begun.last_event_id + 1, number, None)
                session.info[self] = begun._replace(last_event_id=last)

    def noted_by_triggers(self, session: Session) -> frozenset[Entity]:
        """The entities whose changes the database of a session notes by itself."""
        journal = rows.journal_of(session)
        if journal.connection.dialect.name != "sqlite":
            return frozenset()
        version, seen = triggers.schema_version(journal), self._watcher.seen(journal.connection.engine)
        if seen and seen.schema_version == version and not seen.covered:
            return seen.covered
        begun: _Begun | None = session.info.get(self)
        if begun is None or begun.root is not journal.root:
            begun = session.info[self] = self._begun(journal, version, seen)
        elif begun.schema_version != version:
            return self._watcher.look(journal.connection)  # the transaction has changed the schema itself
        return begun.covered

    def _begun(self, journal: rows.Journal, version: int, seen: triggers.Seen | None) -> _Begun:
        if seen and seen.schema_version == version:
            covered = seen.covered
        else:  # others have changed the schema, or the transaction itself
            covered, version = self._watcher.look(journal.connection), -1
            self._watcher.forget(journal.connection.engine)
        return _Begun(journal.root, version, covered, triggers.last_event_id(journal) if covered else None)

    # -- objects ------------------------------------------------------------------------------------------------

    def before_flush(self, session: Session, _context: Any, _instances: Any) -> None:
        """Read what the flush is about to overwrite: where documents stand that move or go."""
        known = self._known()
        if not write_settings().enabled:
            return
        flush = session.info[self._flush] = _Flush(self, known, session)
        if session.bind is not None:  # else the flush may have nothing to do with the database of the outbox
            flush.ask()
        if not known.looks_before:
            return
        going: list[InstanceState[Any]] = [instance_state(each) for each in session.deleted]
        rows_: dict[Entity, list[Identity]] = {}
        linked: dict[Link, list[Identity]] = {}
        for instance in session.dirty:
            state = instance_state(instance)
            if (plan := flush.plan_before(state.class_)) and (changed := state.committed_state):
                identity = _identity(state)
                for own in plan.own:
                    if not own.moves.isdisjoint(changed):
                        rows_.setdefault(own.entity, []).append(identity)
                for link in plan.links:
                    if not link.linking.isdisjoint(changed):
                        linked.setdefault(link, []).append(identity)
                _adopted(state, changed, plan, linked)
                going += _orphaned(state, changed, plan)
        for instance in session.new if known.has_collections else ():
            state = instance_state(instance)
            if (plan := flush.plan_before(state.class_)) and plan.collections:
                _adopted(state, state.committed_state, plan, linked)
        for state in going:
            if (plan := flush.plan_before(state.class_)) and state.key:
                for own in plan.own:
                    rows_.setdefault(own.entity, []).append(state.key[1])
                for link in plan.links:
                    linked.setdefault(link, []).append(state.key[1])
        for entity, identities in rows_.items():
            flush.places += _places(session, entity, identities)
            flush.looked.update((entity, identity) for identity in identities)
        for link, identities in linked.items():
            flush.places += _dependents(session, link, identities)

    def after_flush(self, session: Session, context: UOWTransaction) -> None:
        """Note what was written."""
        known = self._known()
        if not write_settings().enabled:
            return
        flush: _Flush = session.info.pop(self._flush, None) or _Flush(self, known, session)
        plan_of, places = flush.plan, flush.places
        unknown: dict[Entity, list[Identity]] = {}  # the database knows where they stand
        touched: dict[Link, list[Identity]] = {}
        for instance in session.new:
            if plan := plan_of(type(instance)):
                values = instance_state(instance).dict
                for entity, _, _ in plan.own:
                    identity = _current(values, entity.key)
                    if None in identity:
                        continue  # not written yet
                    if entity.tenant is None or entity.tenant in values:
                        places.append((entity, entity.key_of(identity, _tenant(entity, values))))
                    else:
                        unknown.setdefault(entity, []).append(identity)
                for link in plan.links:
                    touched.setdefault(link, []).append(_current(values, link.key))
        # Not session.dirty and .deleted: the flush itself finds out which orphans go.
        for state, (is_deleted, _) in context.states.items():
            if not state.key or not (plan := plan_of(state.class_)):
                continue
            changed = state.committed_state
            if is_deleted:
                for own in plan.own:
                    places += _left_behind(state, own.entity, flush)
            elif changed:
                for own in plan.own:
                    if _counts(state, own.counts, changed, plan):
                        self._note_change(state, own, changed, flush, unknown)
                for link in plan.links:
                    if _counts(state, link.counts, changed, plan):
                        touched.setdefault(link, []).append(_current(state.dict, link.key))
        refused: list[InvalidName] = []
        for entity, identities in unknown.items():
            places += _places(session, entity, identities, refused)
        if refused:
            raise refused[0]
        self._note(session, places)
        for link, identities in touched.items():
            self._note_dependents(session, link, identities)

    def _note_change(
        self,
        state: InstanceState[Any],
        own: _Own,
        changed: Mapping[str, Any],
        flush: _Flush,
        unknown: dict[Entity, list[Identity]],
    ) -> None:
        """A changed object's document; and where it stood, if it moved."""
        entity, values = own.entity, state.dict
        current, former = _current(values, entity.key), _identity(state)
        if entity.tenancy is SHARED:
            tenant = _tenant(entity, values)
            flush.places.append((entity, entity.key_of(current, tenant)))
            if former != current:
                flush.places += _left(entity, former, tenant)
            return
        # Not by the tenant in memory: another session may have changed it.
        unknown.setdefault(entity, []).append(current)
        if not own.moves.isdisjoint(changed) and (entity, former) not in flush.looked:
            # Moved by a listener of the application's, after we looked: what is remembered has to do.
            flush.places += _remembered(state, entity)

    # -- statements ---------------------------------------------------------------------------------------------

    def do_orm_execute(self, state: ORMExecuteState) -> Result[Any] | None:
        """Note what `insert()`, `update()` and `delete()` of mapped classes change."""
        if state.is_select or not (state.is_insert or state.is_update or state.is_delete):
            return None
        known = self._known()
        mapper = state.bind_mapper
        if mapper is None or not write_settings().enabled:
            return None
        names = _assigned(state, mapper) if state.is_update else None
        own = [each for each in known.own if _related(mapper, each.entity.mapper) and _meets(each.counts, names)]
        touched = [link for link in known.links if _related(mapper, link.target) and _meets(link.counts, names)]
        if not own and not touched:
            return None
        session = state.session
        if aside := self.noted_by_triggers(session):
            own = [each for each in own if each.entity not in aside]
            touched = [link for link in touched if link.entity not in aside]
            if not own and not touched:
                return None
        session._autoflush()  # as SQLAlchemy is about to: not in a flush, whose listeners may execute statements
        if state.is_insert:
            identities, result = _with_keys(state, mapper)
            self._note_rows(session, own, touched, identities, [])
            return result
        identities = _targets(state, mapper)
        leaving = state.is_delete
        before: list[Place] = []
        for each in own:
            if leaving or _meets(each.moves | frozenset(each.entity.key), names):
                before += _places(session, each.entity, identities)
        for link in touched:
            if leaving or _meets(link.linking, names):
                before += _dependents(session, link, identities)
        if leaving:
            result = state.invoke_statement()
            self._note(session, before)
            return result
        if _meets(frozenset(_key_names(mapper)), names) and not _is_bulk(state):
            identities, result = _with_keys(state, mapper)
        else:
            result = state.invoke_statement()
        self._note_rows(session, own, touched, identities, before)
        return result

    def _note_rows(
        self,
        session: Session,
        own: Iterable[_Own],
        touched: Iterable[Link],
        identities: Sequence[Identity],
        before: Sequence[Place],
    ) -> None:
        places, refused = list(before), list[InvalidName]()
        for each in own:
            places += _places(session, each.entity, identities, refused)
        self._note(session, places)
        for link in touched:
            self._note_dependents(session, link, identities)
        if refused:
            raise refused[0]  # what is not at fault is noted, should the application go on

    # -- rows ---------------------------------------------------------------------------------------------------

    def _note(self, session: Session, places: Sequence[Place]) -> None:
        """A row for each document that has none yet in this transaction, or in the savepoint that is open."""
        if not places:
            return
        journal, created_at = rows.journal_of(session), now_ms()
        wanted = {
            (entity.name, key[0], key[1]): (_REFRESH, key[0], key[1], key[2], entity.name, 0, created_at)
            for entity, key in places
        }
        rows.insert_many(journal, [wanted[each] for each in journal.fresh(wanted)])

    def _note_dependents(self, session: Session, link: Link, identities: Iterable[Identity]) -> None:
        """Rows for all documents that are made of these rows, by the database itself."""
        journal = rows.journal_of(session)
        fresh = journal.fresh(dict.fromkeys([(link, identity) for identity in identities]))
        statement = self._known().insert_of(link)
        for part in _parts(link.target, [identity for _, identity in fresh]):
            created_at = now_ms()
            since = min((first for first, _, _ in journal.written), default=EPOCH_STEP)
            parameters = {"identities": _flat(part), "created_at": created_at, "since": since}
            done = journal.connection.execute(statement, parameters)
            if done.rowcount:
                first = done.lastrowid - done.rowcount + 1  # one statement, one writer: the ids are a sequence
                journal.add(first, done.rowcount, created_at)


def _less(plan: _Plan | None, aside: frozenset[Entity]) -> _Plan | None:
    """A plan without what concerns these entities."""
    if plan is None:
        return None
    left = replace(
        plan,
        own=tuple(own for own in plan.own if own.entity not in aside),
        links=tuple(link for link in plan.links if link.entity not in aside),
        collections=tuple((name, link) for name, link in plan.collections if link.entity not in aside),
    )
    return None if left.is_empty else left


class _Flush:
    """What one flush means. What triggers stand in its database is asked once, at the latest where it matters."""

    __slots__ = ("_capture", "_known", "_plans", "_session", "looked", "places")

    def __init__(self, capture: Capture, known: _Known, session: Session) -> None:
        self._capture, self._known, self._session = capture, known, session
        self._plans: _Memo | None = None
        self.places: list[Place] = []  # that it takes documents away from, as the database knew them before …
        self.looked: set[tuple[Entity, Identity]] = set()  # … and of which rows

    def plan(self, class_: type[Any]) -> _Plan | None:
        """What a change of an object of this class means."""
        plans = self._plans
        if plans is None:
            if self._known.plans[class_] is None:
                return None
            plans = self.ask()
        return plans[class_]

    def ask(self) -> _Memo:
        """Ask now: what triggers write from here on is theirs."""
        plans = self._plans = self._known.plans_without(self._capture.noted_by_triggers(self._session))
        return plans

    def plan_before(self, class_: type[Any]) -> _Plan | None:
        """The same, if it has to look before the flush."""
        plan = self._known.plans[class_]
        return self.plan(class_) if plan and plan.looks_before else None


def _moves(entity: Entity) -> frozenset[str]:
    """What says where a document stands, beside what the identity map knows by itself."""
    if entity.tenancy is SHARED or entity.tenant is None:
        return frozenset()
    return frozenset((*entity.key, entity.tenant))


def _meets(counts: frozenset[str] | None, names: frozenset[str] | None) -> bool:
    """Whether one of the attributes counts; None stands for all."""
    return counts is None or names is None or not counts.isdisjoint(names)


def _counts(state: InstanceState[Any], counts: frozenset[str] | None, changed: Mapping[str, Any], plan: _Plan) -> bool:
    """Whether an attribute that counts has another value now."""
    values = state.dict
    for name in changed if counts is None else counts.intersection(changed):
        equal = plan.equal.get(name)
        if equal and name in values:  # as get_history() would tell, at a tenth of the cost
            if equal(values[name], changed[name]) is not True:
                return True
        elif name in plan.relationships or state.get_history(name, _UNLOADED).has_changes():
            return True
    return False


def _identity(state: InstanceState[Any]) -> Identity:
    """The primary key of an object as the database knew it before the flush."""
    return () if state.key is None else state.key[1]


def _current(values: Mapping[str, Any], key: Sequence[str]) -> Identity:
    """The primary key that an object has now."""
    return tuple([values.get(name) for name in key])


def _tenant(entity: Entity, values: Mapping[str, Any]) -> Any:
    return None if entity.tenant is None else values.get(entity.tenant)


def _remembered(state: InstanceState[Any], entity: Entity) -> list[Place]:
    """The places of an object's row, by the tenants that the session remembers."""
    history = state.get_history(entity.tenant, _UNLOADED) if entity.tenant else None
    tenants = (history.deleted or history.unchanged or ()) if history else ()
    return [place for tenant in tenants for place in _left(entity, _identity(state), tenant)]


def _left_behind(state: InstanceState[Any], entity: Entity, flush: _Flush) -> list[Place]:
    """The place of a row that is gone, if it was not read before the flush."""
    if entity.tenancy is SHARED:
        return _left(entity, _identity(state), _tenant(entity, state.dict))
    return [] if (entity, _identity(state)) in flush.looked else _remembered(state, entity)


def _adopted(
    state: InstanceState[Any], changed: Mapping[str, Any], plan: _Plan, linked: dict[Link, list[Identity]]
) -> None:
    """Members that a collection takes over from another object, which may not know of it."""
    for name, link in plan.collections:
        if name in changed:
            for member in state.get_history(name, _UNLOADED).added or ():
                if identity := _identity(instance_state(member)):
                    linked.setdefault(link, []).append(identity)


def _orphaned(state: InstanceState[Any], changed: Mapping[str, Any], plan: _Plan) -> list[InstanceState[Any]]:
    """Objects that a flush may delete since they lose their parent, with all that goes with them."""
    orphans = [state] if not plan.parents.isdisjoint(changed) else []
    for name in plan.orphans:
        if name in changed:
            members = state.get_history(name, _UNLOADED).deleted or ()
            orphans += [instance_state(each) for each in members if each is not None]
    below = [each[2] for orphan in orphans for each in orphan.mapper.cascade_iterator("delete", orphan)]
    return orphans + below


def _keeps(relationship: RelationshipProperty[Any]) -> bool:
    """Whether the other end of a relationship deletes what leaves it."""
    name = relationship.back_populates
    return bool(name) and relationship.mapper.relationships[name].cascade.delete_orphan


def _gone_with(mapper: Mapper[Any]) -> set[Mapper[Any]]:
    """What a session deletes with an object."""
    found, new = set[Mapper[Any]](), [mapper]
    while new:
        found.add(each := new.pop())
        below = [*each.self_and_descendants, *(prop.mapper for prop in each.relationships if prop.cascade.delete)]
        new += [other for other in below if other not in found]
    return found


def _key_names(mapper: Mapper[Any]) -> list[str]:
    return [mapper.get_property_by_column(column).key for column in mapper.primary_key]


def _parts(mapper: Mapper[Any], identities: Sequence[Identity]) -> Iterable[Sequence[Identity]]:
    """As many at a time as one statement takes, each once."""
    return portions(list(dict.fromkeys(identities)), len(mapper.primary_key))


def _flat(identities: Sequence[Identity]) -> list[Any]:
    return [identity[0] if len(identity) == 1 else identity for identity in identities]


def _left(entity: Entity, identity: Identity, tenant: Any) -> list[Place]:
    """The place that a document leaves; none, if it cannot have been there. An illegal tenant may be a later one."""
    for each in (tenant, None):
        with suppress(InvalidName):
            return [(entity, entity.key_of(identity, each))]
    return []


def _places(
    session: Session, entity: Entity, identities: Sequence[Identity], refused: list[InvalidName] | None = None
) -> list[Place]:
    """Where the documents of these rows stand, by what the database says at this moment.

    `refused` gets the reasons why rows can have no place. Without it, the places are those that documents leave.
    """
    connection = session.connection(bind_arguments={"mapper": entity.mapper})
    tenant = [] if entity.tenant is None else [entity.column(entity.tenant)]
    columns, width = entity.key_columns, len(entity.key)
    found: list[Place] = []
    for part in _parts(entity.mapper, identities):
        statement = select(*columns, *tenant).select_from(entity.model).where(among(columns, part))
        for row in connection.execute(statement):
            tenant_id = row[width] if tenant else None
            if refused is None:
                found += _left(entity, row[:width], tenant_id)
                continue
            try:
                found.append((entity, entity.key_of(row[:width], tenant_id)))
            except InvalidName as error:
                refused.append(error)
    return found


def _dependents(session: Session, link: Link, identities: Sequence[Identity]) -> list[Place]:
    """The documents that are made of these rows."""
    connection = session.connection(bind_arguments={"mapper": link.entity.mapper})
    return [
        (link.entity, DocumentKey(*row))
        for part in _parts(link.target, identities)
        for row in connection.execute(link.documents, {"identities": _flat(part)})
    ]


def _insert_of(link: Link) -> Insert:
    """A row for each document that has none of this transaction, whose rows begin with the id `:since`."""
    columns: dict[str, Any] = {
        "action": literal(_REFRESH, Text),
        "entity": literal(link.entity.name, Text),
        "document_bytes": literal(0),
        "created_at": bindparam("created_at"),
    }
    noted = select(models.events.c.index_name, models.events.c.document_id).where(
        models.events.c.id >= bindparam("since"), models.events.c.entity == link.entity.name
    )
    place = tuple_(link.entity.index_sql(), link.entity.document_id_sql())
    documents = link.documents.add_columns(*columns.values()).where(place.not_in(noted))
    return insert(models.events).from_select(["index_name", "document_id", "tenant_id", *columns], documents)


# -- what a statement is about ----------------------------------------------------------------------------------


def _related(mapper: Mapper[Any], other: Mapper[Any]) -> bool:
    return mapper.isa(other) or other.isa(mapper)


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
    return frozenset(names - (set(_key_names(mapper)) if _is_bulk(state) else set()))


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


def _targets(state: ORMExecuteState, mapper: Mapper[Any]) -> list[Identity]:
    """The primary keys of the rows that an `update()` or `delete()` is about, asked with its own criteria."""
    names = _key_names(mapper)
    if _is_bulk(state):
        parameters: Any = state.parameters
        return [tuple(each[name] for name in names) for each in parameters]
    statement: Any = state.statement
    keys = [getattr(mapper.class_, name) for name in names]
    # As SQLAlchemy's own synchronize_session="fetch" does it; past the session, whose listeners may leave rows out.
    targets = select(*keys).select_from(mapper).options(*statement._with_options)
    if statement.whereclause is not None:
        targets = targets.where(statement.whereclause)
    connection = state.session.connection(bind_arguments=dict(state.bind_arguments))
    found = connection.execute(targets, state.parameters or {})
    return list(dict.fromkeys(tuple(row) for row in found))


def _with_keys(state: ORMExecuteState, mapper: Mapper[Any]) -> tuple[list[Identity], Result[Any]]:
    """Carry out an `insert()` or `update()` that returns the primary keys too; its caller sees nothing of them."""
    statement: Any = state.statement
    names = _key_names(mapper)
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
