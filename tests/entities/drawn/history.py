"""What sessions do to the rows of a drawn world: each step is one way to change something."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from hypothesis import note
from hypothesis import strategies as st
from sqlalchemy import Engine, delete, insert, update
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session, sessionmaker

from tests.entities.drawn.mapping import Mapped
from tests.entities.drawn.models import TENANT, TENANTS, Col
from tests.entities.drawn.types import value


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
        self.mapped, self.session, self.step = mapped, session, step
        self.at = step.model % len(mapped.classes)
        self.model, self.class_ = mapped.world.models[self.at], mapped.classes[self.at]

    def key(self, at: int) -> dict[str, Any]:
        """A primary key: of two columns, several have the first one in common."""
        parts = (at % 3, at // 2 % 3)
        return {column.name: value(column.type, part) for column, part in zip(self.model.key, parts, strict=False)}

    @property
    def found(self) -> Any:
        """The row that the step is about, if there is one."""
        return self.session.get(self.class_, tuple(self.key(self.step.row).values()))

    @property
    def column(self) -> Col:
        return self.model.columns[self.step.column % len(self.model.columns)]

    def value(self, column: Col, at: int) -> Any:
        return None if column.null and at == 0 else value(column.type, at)

    @property
    def attribute(self) -> Any:
        return getattr(self.class_, self.column.name)

    def values(self, row: int, to: int) -> dict[str, Any]:
        """A whole row; a few columns are left to their defaults."""
        values = {
            column.name: self.value(column, to + at)
            for at, column in enumerate(self.model.columns)
            if column.how not in ("default", "server_default") or (to + at) % 2
        }
        if self.model.tenant:
            values[TENANT] = TENANTS[to % 2]
        return self.key(row) | values


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


def histories() -> st.SearchStrategy[list[Step]]:
    return st.lists(
        st.builds(Step, st.sampled_from(sorted(STEPS)), _numbers, _numbers, _numbers, _numbers, st.booleans()),
        min_size=3,
        max_size=25,
    )
