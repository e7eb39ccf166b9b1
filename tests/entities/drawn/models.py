"""What is drawn: tables, classes that are mapped to them, and which of them are documents. Plain data, which prints."""

from __future__ import annotations

from typing import NamedTuple

from hypothesis import strategies as st

from tests.entities.drawn.types import KEYS, TYPES

TENANT = "tenant"
TENANTS = ("acme", "bolt")


class Col(NamedTuple):
    """A column and its attribute."""

    name: str
    type: str
    how: str = "plain"
    null: bool = True

    @property
    def column(self) -> str:
        """Its name in the database."""
        return f"{self.name}_in_db" if self.how == "renamed" else self.name


class Model(NamedTuple):
    """A mapped class."""

    name: str
    key: tuple[Col, ...]
    columns: tuple[Col, ...]
    tenant: bool


class Indexed(NamedTuple):
    """An entity: which model's rows are documents, and of what."""

    model: int
    fields: tuple[str, ...]
    when: str | None
    watch: bool
    tenancy: str | None


class World(NamedTuple):
    """All of it, and how the application's sessions are."""

    models: tuple[Model, ...]
    entities: tuple[Indexed, ...]
    triggers: bool
    expire: bool
    autoflush: bool

    @property
    def unlikely(self) -> bool:
        """Whether a registration may be refused."""
        return False


HOWS = ("plain", "plain", "renamed", "deferred", "default", "onupdate")


@st.composite
def _columns(draw: st.DrawFn, prefix: str, least: int = 1) -> tuple[Col, ...]:
    made = []
    for at, type_ in enumerate(draw(st.lists(st.sampled_from(sorted(TYPES)), min_size=least, max_size=4))):
        hows = (*HOWS, "server_default", "server_default") if type_ in ("str", "text", "int") else HOWS
        made.append(Col(f"{prefix}{at}", type_, draw(st.sampled_from(hows)), draw(st.booleans())))
    return tuple(made)


@st.composite
def _models(draw: st.DrawFn, at: int) -> Model:
    keys = draw(st.lists(st.sampled_from(KEYS), min_size=1, max_size=2))
    key = tuple(
        Col(f"k{number}", type_, draw(st.sampled_from(("plain", "renamed"))), False)
        for number, type_ in enumerate(keys)
    )
    return Model(f"M{at}", key, draw(_columns("c")), draw(st.booleans()))


@st.composite
def _entities(draw: st.DrawFn, models: tuple[Model, ...]) -> Indexed:
    at = draw(st.integers(0, len(models) - 1))
    model = models[at]
    names = [column.name for column in (*model.key, *model.columns)]
    fields = tuple(draw(st.lists(st.sampled_from(names), min_size=1, unique=True)))
    when = draw(st.none() | st.sampled_from([column.name for column in model.columns]))
    tenancy = draw(st.sampled_from((None, "shared", "prefixed", "index"))) if model.tenant else None
    return Indexed(at, fields, when, draw(st.booleans()), tenancy)


@st.composite
def worlds(draw: st.DrawFn) -> World:
    models = tuple(draw(_models(at)) for at in range(draw(st.integers(1, 2))))
    entities = tuple(draw(st.lists(_entities(models), min_size=1, max_size=3)))
    return World(models, entities, draw(st.booleans()), draw(st.booleans()), draw(st.booleans()))
