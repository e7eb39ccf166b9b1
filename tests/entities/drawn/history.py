"""What sessions do to the rows of a drawn world: each step is one way to change something."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from hypothesis import note
from hypothesis import strategies as st
from sqlalchemy import Engine, delete, event, insert, update
from sqlalchemy.dialects.sqlite import insert as sqlite_insert
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session, sessionmaker
from sqlalchemy.orm.collections import collection_adapter

from tests.entities.drawn.mapping import Mapped, Single
from tests.entities.drawn.models import SLUG, TENANT, TENANTS, Col, End
from tests.entities.drawn.types import TYPES, value


class Step(NamedTuple):
    """One change. The numbers choose model, row, column and value, as far as there are so many."""

    what: str
    model: int
    row: int
    column: int
    to: int
    other: bool


class Application:
    """Its session works for long; another one comes in between."""

    def __init__(self, mapped: Mapped, engine: Engine, sessions: sessionmaker[Session]) -> None:
        self.mapped, self.engine = mapped, engine
        self.session, self._other = sessions(), sessions()
        self._kept: list[Any] = []  # what happens must not hang on when the garbage collector comes
        for session in (self.session, self._other):
            for name in ("loaded_as_persistent", "pending_to_persistent"):
                event.listen(session, name, lambda _, instance: self._kept.append(instance))

    def populate(self) -> None:
        """A few rows of each model, which belong together."""
        models = range(len(self.mapped.classes))
        steps = [Step("add", model, row, 0, row, False) for model in models for row in range(3)]
        keys = [len(TYPES[model.key[0].type].values) for model in self.mapped.world.models]
        steps = [step._replace(column=step.row) for step in steps if step.row < keys[step.model]]
        for model in models:
            for at in range(len(self.mapped.world.changeable(model))):
                commit = Step("commit", 0, 0, 0, 0, False)
                steps += [commit, *(Step("relate", model, row, at, row + at + 1, False) for row in range(3))]
        for step in [*steps, Step("commit", 0, 0, 0, 0, False)]:
            self.do(step)

    def do(self, step: Step) -> None:
        """One step. What fails as it may in an application is rolled back."""
        session = self.session
        if step.other and not session.in_transaction():
            session = self._other
        try:
            STEPS[step.what](Doing(self.mapped, session, step))
            if session is self._other:
                session.commit()
        except SQLAlchemyError as error:
            note(f"failed: {type(error).__name__}: {error}")
            session.rollback()
            session.expire_all()

    def close(self) -> None:
        self.session.close()
        self._other.close()


def slug(at: int) -> str:
    """One of few, so that rows take those that others had."""
    return f"s{at % 6}"


class Doing:
    """A step, its numbers read as what they choose."""

    def __init__(self, mapped: Mapped, session: Session, step: Step) -> None:
        self.mapped, self.world, self.session, self.step = mapped, mapped.world, session, step
        self.at = step.model % len(mapped.classes)
        self.model, self.class_ = self.world.models[self.at], mapped.classes[self.at]

    def key(self, at: int, model: int | None = None) -> dict[str, Any]:
        """A primary key: of two columns, several have the first one in common."""
        columns = self.world.models[self.at if model is None else model].key
        parts = (at % 3, at // 2 % 3)
        return {column.name: value(column.type, part) for column, part in zip(columns, parts, strict=False)}

    def get(self, at: int, model: int | None = None) -> Any:
        """The row with that key, if there is one."""
        class_ = self.class_ if model is None else self.mapped.classes[model]
        return self.session.get(class_, tuple(self.key(at, model).values()))

    @property
    def found(self) -> Any:
        """The row that the step is about, if there is one."""
        return self.get(self.step.row)

    @property
    def column(self) -> Col:
        """One of the columns that every kind of the model has."""
        return self.model.settable[self.step.column % len(self.model.settable)]

    def column_of(self, found: Any) -> Col:
        """One of the columns that a row has."""
        columns = [each for each in self.model.columns_of(self.kind_of(found)) if each.how != "computed"]
        return columns[self.step.column % len(columns)]

    def kind_of(self, found: Any) -> int | None:
        kinds = self.mapped.kinds[self.at]
        return kinds.index(type(found)) if type(found) in kinds else None

    @property
    def attribute(self) -> Any:
        return getattr(self.class_, self.column.name)

    @property
    def end(self) -> End | None:
        """A relationship of the model, if it has some."""
        ends = self.world.changeable(self.at)
        return ends[self.step.column % len(ends)] if ends else None

    def single_kind(self, now: int | None) -> str | None:
        """The kind that a row may become, if it has no other table."""
        kinds = self.model.kinds
        if not kinds or (now is not None and kinds[now].joined):
            return None
        names = [self.model.name, *(f"{self.model.name}{kind.name}" for kind in kinds if not kind.joined)]
        return names[self.step.to % len(names)]

    def value(self, column: Col, at: int) -> Any:
        return None if column.null and at == 0 else value(column.type, at)

    def made(self, row: int, to: int, model: int | None = None) -> Any:
        """A new row, of one of the kinds."""
        model = self.at if model is None else model
        kinds = self.mapped.kinds[model]
        kind = (None, *range(len(kinds)))[self.step.column % (len(kinds) + 1)]
        return self.mapped.class_of(model, kind)(**self.values(row, to, model, kind))

    def values(self, row: int, to: int, model: int | None = None, kind: int | None = None) -> dict[str, Any]:
        """A whole row; a few columns are left to their defaults."""
        drawn = self.world.models[self.at if model is None else model]
        values = {
            column.name: self.value(column, to + at)
            for at, column in enumerate(drawn.columns_of(kind))
            if column.how != "computed" and (column.how not in ("default", "server_default") or (to + at) % 2)
        }
        if drawn.tenant:
            values[TENANT] = TENANTS[to % 2]
        if drawn.slug:
            values[SLUG] = slug(row + to)
        return self.key(row, model) | values

    def pointing(self, to: int) -> dict[str, Any]:
        """What columns that point to another row shall hold; nothing if there are none."""
        rels = [rel for rel in self.world.relations if rel.of == self.at and not rel.secondary]
        if not rels:
            return {}
        rel = rels[self.step.column % len(rels)]
        return {f"{rel.name}_{name}": part if to else None for name, part in self.key(to, rel.to).items()}


def _add(doing: Doing) -> None:
    step = doing.step
    doing.session.add(doing.made(step.row, step.to))


def _set(doing: Doing) -> None:
    if (found := doing.found) is not None:
        column = doing.column_of(found)
        setattr(found, column.name, doing.value(column, doing.step.to))


def _set_and_flush(doing: Doing) -> None:
    _set(doing)
    doing.session.flush()


def _delete(doing: Doing) -> None:
    if (found := doing.found) is not None:
        doing.session.delete(found)


def _change_key(doing: Doing) -> None:
    """Not of a row with a part in another table: without a cascade in the database that part stays behind."""
    if (found := doing.found) is not None and not doing.model.in_parts:
        for name, part in doing.key(doing.step.to).items():
            setattr(found, name, part)
        doing.session.flush()


def _change_tenant(doing: Doing) -> None:
    if (found := doing.found) is not None and doing.model.tenant:
        found.tenant = TENANTS[doing.step.to % 2]


def _change_slug(doing: Doing) -> None:
    if (found := doing.found) is not None and doing.model.slug:
        found.slug = slug(doing.step.to)
        doing.session.flush()


def _update_slug(doing: Doing) -> None:
    if doing.model.slug:
        where = [getattr(doing.class_, name) == part for name, part in doing.key(doing.step.row).items()]
        statement = update(doing.class_).where(*where).values(slug=slug(doing.step.to))
        doing.session.execute(statement, execution_options={"synchronize_session": "fetch"})


def _merge(doing: Doing) -> None:
    """A row given as a whole; one that is there is of the same kind."""
    made = doing.made(doing.step.row, doing.step.to)
    if (found := doing.found) is None or type(found) is type(made):
        doing.session.merge(made)


def _update_where(doing: Doing) -> None:
    attribute, step = doing.attribute, doing.step
    where = attribute == doing.value(doing.column, step.row)
    doing.session.execute(update(doing.class_).where(where).values({attribute: doing.value(doing.column, step.to)}))


def _delete_where(doing: Doing) -> None:
    if doing.model.in_parts:
        return
    doing.session.execute(delete(doing.class_).where(doing.attribute == doing.value(doing.column, doing.step.to)))


def _insert(doing: Doing) -> None:
    step = doing.step
    rows = [doing.values(step.row, step.to), doing.values(step.row + 1, step.to + 1)]
    doing.session.execute(insert(doing.class_), rows)


def _point_to(doing: Doing) -> None:
    """By the columns that hold the key of the other row."""
    if (found := doing.found) is None:
        return
    for name, part in doing.pointing(doing.step.to).items():
        setattr(found, name, part)


def _update_pointing(doing: Doing) -> None:
    step = doing.step
    where = doing.attribute == doing.value(doing.column, step.row)
    if pointing := doing.pointing(step.to):
        doing.session.execute(update(doing.class_).where(where).values(pointing))


def _relate(doing: Doing) -> None:
    """Another row into a relationship, or out of it."""
    if (end := doing.end) is None or (found := doing.found) is None:
        return
    other = doing.get(doing.step.to, end.to) if doing.step.to or end.many else None
    if not end.many:
        setattr(found, end.name, other)
    elif other is not None:
        _toggle(getattr(found, end.name), other, doing.step.to)


def _toggle(members: Any, other: Any, to: int) -> None:
    if isinstance(members, dict):
        key = next((key for key, each in members.items() if each is other), None)
        if key is not None:
            del members[key]
        else:
            collection_adapter(members).append_with_event(other)
    elif other in members:
        members.remove(other)
    elif isinstance(members, set):
        members.add(other)
    elif to % 2:
        members.insert(0, other)
    else:
        members.append(other)


def _replace_members(doing: Doing) -> None:
    """A whole collection by another one."""
    if (end := doing.end) is None or not end.many or (found := doing.found) is None:
        return
    others = list(dict.fromkeys(each for at in range(doing.step.to) if (each := doing.get(at, end.to)) is not None))
    match end.rel.collection:
        case "set":
            setattr(found, end.name, set(others))
        case "dict":
            key = doing.mapped.world.models[end.to].key
            setattr(found, end.name, {tuple(getattr(each, part.name) for part in key): each for each in others})
        case _:
            setattr(found, end.name, others)


def _add_related(doing: Doing) -> None:
    """A new row and one that comes with it."""
    step, end = doing.step, doing.end
    made = doing.made(step.row, step.to)
    if end is not None:
        other = doing.made(step.to, step.row, end.to)
        if end.many:
            collection_adapter(getattr(made, end.name)).append_with_event(other)
        else:
            setattr(made, end.name, other)
    doing.session.add(made)


def _set_made(doing: Doing) -> None:
    """By an attribute that is made of a column."""
    made = [each for each in doing.model.made if each.what in ("synonym", "composite")]
    if not made or (found := doing.found) is None:
        return
    name, what, of = made[doing.step.column % len(made)]
    column = next(each for each in doing.model.columns if each.name == of)
    if column.how != "computed":
        given = doing.value(column, doing.step.to)
        setattr(found, name, Single(given) if what == "composite" else given)


def _change_in_place(doing: Doing) -> None:
    if (found := doing.found) is None:
        return
    for column in doing.model.columns_of(doing.kind_of(found)):
        if column.type == "mutable" and getattr(found, column.name) is not None:
            getattr(found, column.name)["in place"] = doing.step.to


def _set_unloaded(doing: Doing) -> None:
    if (found := doing.found) is not None:
        doing.session.flush()
        doing.session.expire(found)
        _set(doing)


def _change_kind(doing: Doing) -> None:
    """What a row is, among those kinds that need no table of their own."""
    if (found := doing.found) is not None and (kind := doing.single_kind(doing.kind_of(found))):
        found.kind = kind
        doing.session.flush()
        doing.session.expunge(found)


def _update_kind(doing: Doing) -> None:
    if doing.model.kinds and not doing.model.in_parts:
        where = doing.attribute == doing.value(doing.column, doing.step.row)
        doing.session.execute(update(doing.class_).where(where).values(kind=doing.single_kind(None)))
        doing.session.expunge_all()


def _update_tenant(doing: Doing) -> None:
    if doing.model.tenant:
        where = doing.attribute == doing.value(doing.column, doing.step.row)
        statement = update(doing.class_).where(where).values(tenant=TENANTS[doing.step.to % 2])
        doing.session.execute(statement, execution_options={"synchronize_session": "fetch"})


def _update_key(doing: Doing) -> None:
    if doing.model.in_parts:
        return
    step = doing.step
    doing.session.flush()
    where = [getattr(doing.class_, name) == part for name, part in doing.key(step.row).items()]
    doing.session.execute(update(doing.class_).where(*where).values(doing.key(step.to)))
    doing.session.expunge_all()  # what the session remembers has the old keys


def _update_by_key(doing: Doing) -> None:
    column, step = doing.column, doing.step
    doing.session.flush()
    given = {column.name: doing.value(column, step.to)} | ({"version": 1} if doing.model.version else {})
    rows = [doing.key(at) | given for at in (step.row, step.row + 1)]
    doing.session.execute(update(doing.class_), rows)
    doing.session.expire_all()


def _update_by_query(doing: Doing) -> None:
    found = doing.session.query(doing.class_).filter(doing.attribute == doing.value(doing.column, doing.step.row))
    found.update({doing.column.name: doing.value(doing.column, doing.step.to)}, synchronize_session=False)
    doing.session.expire_all()


def _delete_by_query(doing: Doing) -> None:
    if doing.model.in_parts:
        return
    doing.session.query(doing.class_).filter(doing.attribute == doing.value(doing.column, doing.step.to)).delete()


def _insert_returning(doing: Doing) -> None:
    step = doing.step
    statement = insert(doing.class_).returning(doing.attribute)
    doing.session.execute(statement, [doing.values(step.row, step.to)]).all()


def _insert_or_update(doing: Doing) -> None:
    """Not of what says in which view a row is: an upsert that moves a linked row is none that is seen."""
    step, column = doing.step, doing.column
    in_a_view = any(each.view and not each.secondary and each.of == doing.at for each in doing.world.relations)
    if in_a_view and column == doing.model.columns[0]:
        return
    statement = sqlite_insert(doing.class_).values(doing.values(step.row, step.to))
    key = [getattr(doing.class_, each.name) for each in doing.model.key]
    changed = {column.column: statement.excluded[column.column]}
    doing.session.execute(statement.on_conflict_do_update(index_elements=key, set_=changed))
    doing.session.expire_all()


def _change_in_savepoint(doing: Doing) -> None:
    """…that is rolled back; then once more."""
    session = doing.session
    session.flush()
    savepoint = session.begin_nested()
    _set_and_flush(doing)
    _change_tenant(doing)
    session.flush()
    savepoint.rollback()
    if doing.step.to % 2:
        _set_and_flush(doing)


def _associate(doing: Doing) -> None:
    """Two rows by an object of the class that is mapped to the table between them."""
    if not (mapped := doing.mapped.associations):
        return
    step, name = doing.step, sorted(mapped)[doing.step.column % len(mapped)]
    rel = next(rel for rel in doing.world.relations if rel.name == name)
    key = {f"of_{part}": each for part, each in doing.key(step.row, rel.of).items()}
    key |= {f"to_{part}": each for part, each in doing.key(step.to, rel.to).items()}
    doing.session.flush()
    if found := doing.session.get(mapped[name], key):
        doing.session.delete(found)
    else:
        doing.session.add(mapped[name](**key))
    doing.session.flush()
    doing.session.expire_all()


def _flush(doing: Doing) -> None:
    doing.session.flush()


def _commit(doing: Doing) -> None:
    doing.session.commit()


def _roll_back(doing: Doing) -> None:
    doing.session.rollback()


STEPS: dict[str, Callable[[Doing], None]] = {
    name.strip("_"): step
    for name, step in list(globals().items())
    if name.startswith("_") and getattr(step, "__annotations__", {}).get("doing") == "Doing"
}

_numbers = st.integers(0, 5)
_names = [*(name for name in sorted(STEPS) if name != "roll_back"), "commit", "commit", "set", "relate"] * 2 + [
    "roll_back"
]


def histories() -> st.SearchStrategy[list[Step]]:
    step = st.builds(Step, st.sampled_from(_names), _numbers, _numbers, _numbers, _numbers, st.booleans())
    return st.lists(step, min_size=10, max_size=40)
