"""Changes that a session makes to entities become `refresh` rows, in its own transaction.

What is seen: objects that are added, changed and deleted; their relationships, as far as documents are made of them;
and `insert()`, `update()`, `delete()` of mapped classes (`Query.update` and `.delete` as well).

What is not seen, since no session knows of it: `bulk_insert_mappings` and its sisters, statements on a `Table` or in
plain SQL, rows that the database changes by itself (`ON DELETE CASCADE`, triggers), an upsert that moves a row to
another tenant or changes its `id`, and other programs. Call `OutboxRepository.refresh` beside those, or have the
database note changes by triggers (`outbox.triggers`): of an entity that has all of its triggers, nothing is noted here.

Rows are inserted in `after_flush`: only then are the entities written, so that the id of a row is higher than that of
any row whose transaction the entity's write waited for. Places that a document leaves are read before the flush, from
the database: what the session remembers may be older.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from itertools import chain
from typing import Any, Final, NamedTuple
from weakref import WeakSet

from sqlalchemy import ClauseElement, Connection, Engine, Result, event
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import InstanceState, Mapper, ORMExecuteState, Session, UOWTransaction, class_mapper
from sqlalchemy.orm.attributes import instance_state

from outbox.entities.entity import Entity
from outbox.entities.links import Link
from outbox.entities.registry import EntityRegistry
from outbox.errors import ConfigurationError, InvalidName, shortened
from outbox.settings import write_settings
from outbox.store.store import dialect_of
from outbox.write import journal
from outbox.write.changes import (
    UNLOADED,
    Identity,
    Place,
    current_identity,
    dependents_of,
    former_identity,
    former_place,
    lock_rows,
    note,
    note_dependents,
    note_late_dependents,
    places_of,
    remembered_places,
    tenant_of,
    where_written,
)
from outbox.write.coverage import Coverage
from outbox.write.plans import Known, Memo, Own, Plan, intersects
from outbox.write.statements import note_statement

_PLAIN: Final = frozenset({str, int, float, bool, type(None), datetime})


class Capture:
    """The listeners of one registry."""

    def __init__(self, registry: EntityRegistry) -> None:
        self._registry = registry
        self._last_known = Known(registry)
        self._coverage = Coverage(registry)
        self._flush = object()  # the key of what a session remembers from before a flush until after it
        self._sessions: WeakSet[Any] = WeakSet()  # what was captured
        self._made: WeakSet[Any] = WeakSet()  # the classes of sessions that were made for it

    def listen(self, sessions: Any) -> None:
        """Note what these sessions change from now on; see `EntityRegistry.capture`. Again changes nothing."""
        captured = sessions
        if _is_async_sessionmaker(factory := getattr(sessions, "session_factory", None)):
            sessions = factory  # of an async_scoped_session
        if _is_async_sessionmaker(sessions):
            # Their events are those of the session inside, of which each maker gets a class of its own.
            inside = sessions.kw.get("sync_session_class") or sessions.class_.sync_session_class
            if inside not in self._made:
                inside = type(f"Captured{inside.__name__}", (inside,), {})
                self._made.add(inside)
                sessions.configure(sync_session_class=inside)
            sessions = inside
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
            except (SQLAlchemyError, AttributeError, NotImplementedError):  # of what has other events, as an engine has
                raise ConfigurationError(
                    f"{shortened(sessions)} makes no sessions; capture a sessionmaker, scoped_session (of "
                    "Flask-SQLAlchemy db.session), async_sessionmaker or subclass of Session"
                ) from None
        self._sessions.add(captured)

    def engines(self) -> set[Engine]:
        """Those that the captured sessions are known to use; others choose theirs when they are asked."""
        found: list[Any] = []
        for sessions in self._sessions:
            given = getattr(getattr(sessions, "session_factory", sessions), "kw", {})
            found += [given.get("bind"), *(given.get("binds") or {}).values()]
        return {engine for each in found if isinstance(engine := getattr(each, "sync_engine", each), Engine)}

    def _known(self) -> Known:
        known = self._last_known
        if known.generation != self._registry.generation:
            known = self._last_known = Known(self._registry)
        return known

    def after_begin(self, session: Session, transaction: Any, connection: Connection) -> None:
        """See what the database is like before this transaction."""
        if write_settings().enabled:
            self._coverage.begun(session, transaction, connection)

    def before_commit(self, session: Session) -> None:
        """See what triggers have written in this transaction, and which documents others have made meanwhile."""
        if session.in_nested_transaction():
            return
        session.flush()  # as commit would do next
        self._coverage.committing(session)
        if write_settings().enabled:
            note_late_dependents(session, self._known().insert_of)

    def before_flush(self, session: Session, _context: Any, _instances: Any) -> None:
        """Read what the flush is about to overwrite: where documents are that move or go."""
        known = self._known()
        if not write_settings().enabled:
            return
        flush = session.info[self._flush] = Flush(self._coverage, known, session)
        flush.remember()
        if session.bind is not None and flush.is_about_outbox(classes := flush.classes()):
            flush.ask(classes)
        if known.looks_before:
            flush.look()

    def after_flush(self, session: Session, context: UOWTransaction) -> None:
        """Note what was written."""
        known = self._known()
        if not write_settings().enabled:
            return
        flush: Flush = session.info.pop(self._flush, None) or Flush(self._coverage, known, session)
        flush.note(context)

    def do_orm_execute(self, state: ORMExecuteState) -> Result[Any] | None:
        """Note what `insert()`, `update()` and `delete()` of mapped classes change."""
        if state.is_select or not (state.is_insert or state.is_update or state.is_delete):
            return None
        known = self._known()
        return note_statement(known, self._coverage, state) if write_settings().enabled else None


def _is_async_sessionmaker(sessions: Any) -> bool:
    """Asked only where SQLAlchemy's asyncio is in use: it cannot be imported without greenlet, which is optional."""
    asyncio = sys.modules.get("sqlalchemy.ext.asyncio")
    return asyncio is not None and isinstance(sessions, asyncio.async_sessionmaker)


class Flush:
    """What one flush means. Which triggers its database has is asked once, at the latest where it matters."""

    __slots__ = ("_before", "_coverage", "_dirty", "_known", "_plans", "_session", "looked", "places")

    def __init__(self, coverage: Coverage, known: Known, session: Session) -> None:
        self._coverage, self._known, self._session = coverage, known, session
        self._plans: Memo | None = None
        self._dirty: Collection[Any] = ()
        self._before: dict[InstanceState[Any], _Before] = {}  # of those objects of which there is something to say
        self.places: list[Place] = []  # that it takes documents away from, as the database knew them before …
        self.looked: set[tuple[Entity, Identity]] = set()  # … and of which rows

    def plan(self, class_: type[Any]) -> Plan | None:
        """What a change of an object of this class means."""
        plans = self._plans
        if plans is None:
            if self._known.plans[class_] is None:
                return None
            plans = self.ask()
        return plans[class_]

    def ask(self, classes: Collection[type[Any]] | None = None) -> Memo:
        """Ask now: what triggers write from here on is theirs, and what is read from here on stays true.

        `classes`: what `classes()` has just said, if that was asked."""
        connection = journal.lock(self._session)
        plans = self._plans = self._known.plans_without(self._coverage.of(self._session))
        if any(map(plans.__getitem__, classes or self.classes())):
            dialect_of(connection).require_transaction(connection)
        return plans

    def classes(self) -> Collection[type[Any]]:
        """Of the objects that it may write."""
        return set(map(type, chain(self._dirty, self._session.new, self._session.deleted)))

    def is_about_outbox(self, classes: Collection[type[Any]]) -> bool:
        """Whether it writes to the database of the outbox, of those that the session may have."""
        if any(map(self._known.plans.__getitem__, classes)):  # as nearly always: they are there, or an error
            return True
        session = self._session
        own = journal.bind_of(session).engine
        return any(session.get_bind(**where_written(class_mapper(each))).engine is own for each in classes)

    def plan_before(self, class_: type[Any]) -> Plan | None:
        """The same, if it has to look before the flush."""
        plan = self._known.plans[class_]
        return self.plan(class_) if plan and plan.looks_before else None

    def remember(self) -> None:
        """What a flush makes objects forget: that an attribute was set to an SQL expression, whose value the database
        alone knows."""
        self._dirty = self._session.dirty
        for instance in self._dirty:
            state = instance_state(instance)
            if self._known.plans[state.class_]:
                values = state.dict
                expressions = [name for name in state.committed_state if _is_expression(values.get(name))]
                if expressions or state.expired_attributes:
                    self._before[state] = _Before(expressions, frozenset(state.expired_attributes))

    def _forgotten(self, state: InstanceState[Any]) -> Collection[str]:
        """The attributes that the flush has changed, and that the object says nothing of any more."""
        before, expired = self._before.get(state), state.expired_attributes
        if before is not None:
            return (expired - before.expired).union(before.expressions)
        return expired if expired and state.obj() in self._dirty else ()

    def look(self) -> None:
        """Before the flush, read where documents are that move or go."""
        going: list[InstanceState[Any]] = [instance_state(each) for each in self._session.deleted]
        moving: dict[Entity, list[Identity]] = {}
        linked: dict[Link, list[Identity]] = {}
        for instance in self._dirty:
            state = instance_state(instance)
            if (plan := self.plan_before(state.class_)) and (changed := state.committed_state):
                identity = former_identity(state)
                for own in plan.own:
                    if intersects(own.moves, changed):
                        moving.setdefault(own.entity, []).append(identity)
                for own in plan.relatives:
                    moving.setdefault(own.entity, []).append(identity)
                for link in plan.links:
                    if link.linking is None or not link.linking.isdisjoint(changed):
                        linked.setdefault(link, []).append(identity)
                _with_members(state, changed, plan, moving, linked)
                going += _orphaned(state, changed, plan)
        for instance in self._session.new:
            plan = self._known.plans[type(instance)]
            if plan and plan.collections and (plan := self.plan(type(instance))):
                state = instance_state(instance)
                _with_members(state, state.committed_state, plan, moving, linked)
        for state in going:
            if (plan := self.plan_before(state.class_)) and state.key:
                for own in (*plan.own, *plan.relatives):
                    moving.setdefault(own.entity, []).append(state.key[1])
                for link in plan.links:
                    linked.setdefault(link, []).append(state.key[1])
        self._lock(moving, linked)
        for entity, identities in moving.items():
            self.places += places_of(self._session, entity, identities)
            self.looked.update((entity, identity) for identity in identities)
        for link, identities in linked.items():
            self.places += dependents_of(self._session, link, identities)

    def _lock(self, moving: Mapping[Entity, list[Identity]], linked: Mapping[Link, list[Identity]]) -> None:
        """Rows of all tables in one order: sessions that lock each other's rows would end in a deadlock otherwise."""
        rows: dict[Mapper[Any], list[Identity]] = {}
        for mapper, identities in (
            *((entity.mapper, each) for entity, each in moving.items()),
            *((link.target, each) for link, each in linked.items()),
        ):
            rows.setdefault(mapper, []).extend(identities)
        for mapper in sorted(rows, key=lambda mapper: (str(mapper.base_mapper.local_table), str(mapper.local_table))):
            lock_rows(self._session, mapper, rows[mapper])

    def note(self, context: UOWTransaction) -> None:
        """After it, a row for each document that is another one now."""
        plan_of, places, session = self.plan, self.places, self._session
        unknown: dict[Entity, list[Identity]] = {}  # the database knows where they belong
        touched: dict[Link, list[Identity]] = {}
        moved: dict[Link, list[Identity]] = {}  # of them, those that other documents may be made of now
        for instance in session.new:
            if plan := plan_of(type(instance)):
                values = instance_state(instance).dict
                for entity, _, moves in plan.own:
                    identity = current_identity(values, entity.key)
                    if None in identity:
                        continue  # not written yet
                    if moves is not None and (entity.tenant is None or entity.tenant in values):
                        places.append((entity, entity.key_of(identity, tenant_of(entity, values))))
                    else:
                        unknown.setdefault(entity, []).append(identity)
                if any(values.get(name) != plan.kind for name in plan.kinds):
                    _note_relatives(instance_state(instance), plan, unknown)
                for link in plan.links:
                    identity = current_identity(values, link.key)
                    touched.setdefault(link, []).append(identity)
                    moved.setdefault(link, []).append(identity)
        # Not session.dirty and .deleted: the flush itself finds out which orphans go.
        for state, (is_deleted, _) in context.states.items():
            if not state.key or not (plan := plan_of(state.class_)):
                continue
            changed, forgotten = state.committed_state, self._forgotten(state)
            if is_deleted:
                for own in plan.own:
                    places += self._deleted_place(state, own)
            elif changed or forgotten:
                names = changed.keys() | forgotten if forgotten else changed
                for own in plan.own:
                    if _is_made_anew(state, own.counts, forgotten, plan):
                        self._note_change(state, own, names, unknown)
                _note_relatives(state, plan, unknown)
                for link in plan.links:
                    if _is_made_anew(state, link.counts, forgotten, plan):
                        identity = _identity(state, link.key)
                        touched.setdefault(link, []).append(identity)
                        if link.linking is None or not link.linking.isdisjoint(names):
                            moved.setdefault(link, []).append(identity)
        refused: list[InvalidName] = []
        for entity, identities in unknown.items():
            places += places_of(session, entity, identities, refused)
        if refused:
            raise refused[0]
        note(session, places)
        for link, identities in touched.items():
            note_dependents(session, self._known.insert_of(link), link, identities, moved.get(link, ()))

    def _note_change(
        self,
        state: InstanceState[Any],
        own: Own,
        changed: Collection[str],
        unknown: dict[Entity, list[Identity]],
    ) -> None:
        """A changed object's document; and where it was, if it moved."""
        entity, values = own.entity, state.dict
        current, former = _identity(state, entity.key), former_identity(state)
        if not own.may_move and (entity.tenant is None or entity.tenant in values or current != former):
            tenant = tenant_of(entity, values)
            self.places.append((entity, entity.key_of(current, tenant)))
            if former != current:
                self.places += former_place(entity, former, tenant)
            return
        # Not by what is in memory: another session may have changed it.
        unknown.setdefault(entity, []).append(current)
        if intersects(own.moves, changed) and (entity, former) not in self.looked:
            # Moved by a listener of the application's, after we looked: what is remembered has to do.
            self.places += remembered_places(state, entity)

    def _deleted_place(self, state: InstanceState[Any], own: Own) -> list[Place]:
        """The place of a deleted row, if it was not read before the flush."""
        entity = own.entity
        if not own.may_move:
            return former_place(entity, former_identity(state), tenant_of(entity, state.dict))
        return [] if (entity, former_identity(state)) in self.looked else remembered_places(state, entity)


class _Before(NamedTuple):
    """Of an object before a flush."""

    expressions: Collection[str]  # attributes that are set to one
    expired: frozenset[str]  # those that the object knew nothing of before


def _is_expression(value: Any) -> bool:
    if type(value) in _PLAIN:  # as nearly always
        return False
    return isinstance(value, ClauseElement) or hasattr(value, "__clause_element__")


def _identity(state: InstanceState[Any], key: Sequence[str]) -> Identity:
    """The primary key that an object has now; the one that it had, where it has forgotten it since."""
    values = state.dict
    if state.key and not all(name in values for name in key):
        return former_identity(state)
    return current_identity(values, key)


def _note_relatives(state: InstanceState[Any], plan: Plan, unknown: dict[Entity, list[Identity]]) -> None:
    """A row that the database may know as one of another kind than the object is, or will from now on."""
    for own in plan.relatives:
        unknown.setdefault(own.entity, []).append(_identity(state, own.entity.key))


def _is_made_anew(
    state: InstanceState[Any], counts: frozenset[str] | None, forgotten: Collection[str], plan: Plan
) -> bool:
    """Whether an attribute that counts has another value now, as far as the object can tell."""
    if forgotten and intersects(counts, forgotten):
        return True
    changed, values = state.committed_state, state.dict
    for name in changed if counts is None else counts.intersection(changed):
        equal = plan.equal.get(name)
        if equal and name in values:  # as get_history() would tell, at a tenth of the cost
            if equal(values[name], changed[name]) is not True:
                return True
        elif name in plan.relationships or state.get_history(name, UNLOADED).has_changes():
            return True
    return False


def _with_members(
    state: InstanceState[Any],
    changed: Mapping[str, Any],
    plan: Plan,
    moving: dict[Entity, list[Identity]],
    linked: dict[Link, list[Identity]],
) -> None:
    """Members that a collection takes over, from another object that may not know of it, and that it lets go."""
    for name, owns, links in plan.collections:
        if name in changed:
            history = state.get_history(name, UNLOADED)
            members = [each for each in (*(history.added or ()), *(history.deleted or ())) if each is not None]
            identities = [identity for each in members if (identity := former_identity(instance_state(each)))]
            for own in owns if identities else ():
                moving.setdefault(own.entity, []).extend(identities)
            for link in links if identities else ():
                linked.setdefault(link, []).extend(identities)


def _orphaned(state: InstanceState[Any], changed: Mapping[str, Any], plan: Plan) -> list[InstanceState[Any]]:
    """Objects that a flush deletes since they have lost their parent, with all that goes with them.

    `hasparent` is what SQLAlchemy's flush goes by itself: of an object that has got another parent nothing is loaded.
    """
    lost = [other for name, other in plan.parents.items() if name in changed]
    orphans = [state] if any(not other.hasparent(state, optimistic=True) for other in lost) else []
    for name, relationship in plan.orphans.items():
        if name in changed:
            members = state.get_history(name, UNLOADED).deleted or ()
            former = [instance_state(each) for each in members if each is not None]
            orphans += [each for each in former if not relationship.hasparent(each)]
    below = [each[2] for orphan in orphans for each in orphan.mapper.cascade_iterator("delete", orphan)]
    return orphans + below
