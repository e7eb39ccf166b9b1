"""What sessions do to the rows of a drawn world: each step is one way to change something."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from hypothesis import note
from hypothesis import strategies as st
from sqlalchemy import Engine, delete, insert, update
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session, sessionmaker
from sqlalchemy.orm.collections import collection_adapter

from tests.entities.drawn.mapping import Mapped
from tests.entities.drawn.models import TENANT, TENANTS, Col, End
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

    def populate(self) -> None:
        """A few rows of each model, which belong together."""
        models = range(len(self.mapped.classes))
        steps = [Step("add", model, row, 0, row, False) for model in models for row in range(3)]
        steps = [
            step for step in steps if step.row < len(TYPES[self.mapped.world.models[step.model].key[0].type].values)
        ]
        for model in models:
            for at in range(len(self.mapped.world.ends(model))):
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
        return self.model.columns[self.step.column % len(self.model.columns)]

    @property
    def attribute(self) -> Any:
        return getattr(self.class_, self.column.name)

    @property
    def end(self) -> End | None:
        """A relationship of the model, if it has some."""
        ends = self.world.ends(self.at)
        return ends[self.step.column % len(ends)] if ends else None

    def value(self, column: Col, at: int) -> Any:
        return None if column.null and at == 0 else value(column.type, at)

    def values(self, row: int, to: int, model: int | None = None) -> dict[str, Any]:
        """A whole row; a few columns are left to their defaults."""
        drawn = self.world.models[self.at if model is None else model]
        values = {
            column.name: self.value(column, to + at)
            for at, column in enumerate(drawn.columns)
            if column.how not in ("default", "server_default") or (to + at) % 2
        }
        if drawn.tenant:
            values[TENANT] = TENANTS[to % 2]
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
    doing.session.add(doing.class_(**doing.values(step.row, step.to)))


def _set(doing: Doing) -> None:
    if (found := doing.found) is not None:
        setattr(found, doing.column.name, doing.value(doing.column, doing.step.to))


def _set_and_flush(doing: Doing) -> None:
    _set(doing)
    doing.session.flush()


def _delete(doing: Doing) -> None:
    if (found := doing.found) is not None:
        doing.session.delete(found)


def _change_key(doing: Doing) -> None:
    if (found := doing.found) is not None:
        for name, part in doing.key(doing.step.to).items():
            setattr(found, name, part)
        doing.session.flush()


def _change_tenant(doing: Doing) -> None:
    if (found := doing.found) is not None and doing.model.tenant:
        found.tenant = TENANTS[doing.step.to % 2]


def _merge(doing: Doing) -> None:
    doing.session.merge(doing.class_(**doing.values(doing.step.row, doing.step.to)))


def _update_where(doing: Doing) -> None:
    attribute, step = doing.attribute, doing.step
    where = attribute == doing.value(doing.column, step.row)
    doing.session.execute(update(doing.class_).where(where).values({attribute: doing.value(doing.column, step.to)}))


def _delete_where(doing: Doing) -> None:
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
    made = doing.class_(**doing.values(step.row, step.to))
    if end is not None:
        other = doing.mapped.classes[end.to](**doing.values(step.to, step.row, end.to))
        if end.many:
            collection_adapter(getattr(made, end.name)).append_with_event(other)
        else:
            setattr(made, end.name, other)
    doing.session.add(made)


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
