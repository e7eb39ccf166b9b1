"""What is drawn: tables, classes that are mapped to them, and which of them are documents. Plain data, which prints."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from hypothesis import strategies as st

from tests.entities.drawn.types import KEYS, ODD, TYPES

TENANT = "tenant"
TENANTS = ("acme", "bolt")
SLUG = "slug"


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


class Kind(NamedTuple):
    """A subclass of a mapped class; `joined`: with a table of its own."""

    name: str
    joined: bool
    columns: tuple[Col, ...]


class Made(NamedTuple):
    """An attribute that is made of a column: a `synonym`, `hybrid`, `property`, `expression` or `composite`."""

    name: str
    what: str
    column: str


class Model(NamedTuple):
    """A mapped class."""

    name: str
    key: tuple[Col, ...]
    columns: tuple[Col, ...]
    tenant: bool
    kinds: tuple[Kind, ...]
    made: tuple[Made, ...]
    version: bool
    slug: bool = False  # whether rows have another name of their own, which is unique

    @property
    def settable(self) -> list[Col]:
        """Columns that an application writes."""
        return [column for column in self.columns if column.how != "computed"]

    @property
    def in_parts(self) -> bool:
        """Whether rows may have a part in another table, which a statement on this one would leave alone."""
        return any(kind.joined for kind in self.kinds)

    def columns_of(self, kind: int | None) -> list[Col]:
        """Those of a row of a kind."""
        return [*self.columns, *(() if kind is None else self.kinds[kind].columns)]


class Rel(NamedTuple):
    """A relationship. By foreign key: rows of `of` point to one of `to`; or by a table between the two."""

    at: int
    of: int
    to: int
    secondary: bool
    forward: bool  # whether the pointing class knows it …
    back: bool  # … and the other one
    ordered: bool
    collection: str
    cascade: str
    lazy: str
    view: bool  # whether the other class also has a part of its members, by a column of theirs
    mapped: bool  # whether the table between the two has a class of its own

    @property
    def name(self) -> str:
        return f"r{self.at}"

    @property
    def ends(self) -> Iterator[End]:
        if self.forward:
            yield End(self.name, self, self.of, self.to, self.secondary)
        if self.back:
            yield End(f"{self.name}_of", self, self.to, self.of, True)
        if self.view and not self.secondary:
            yield End(f"{self.name}_view", self, self.to, self.of, True)


class End(NamedTuple):
    """A relationship as one of its classes sees it."""

    name: str
    rel: Rel
    of: int
    to: int
    many: bool

    @property
    def view(self) -> bool:
        """Whether it is only looked at."""
        return self.name.endswith("_view")


class Indexed(NamedTuple):
    """An entity: which model's rows are documents, and of what.

    `by`: `fields`, `named` (fields with names of their own) or `to_document`. `by_slug`: what its `_id`s are made of.
    """

    model: int
    kind: int | None
    fields: tuple[str, ...]
    by: str
    when: str | None
    watch: bool
    tenancy: str | None
    by_slug: bool = False
    id_prefix: str = ""

    @property
    def named(self) -> dict[str, str]:
        """Its paths by the names of its fields."""
        return {f"f{at}": path for at, path in enumerate(self.fields)}


class World(NamedTuple):
    """All of it, and how the application's sessions are."""

    models: tuple[Model, ...]
    relations: tuple[Rel, ...]
    entities: tuple[Indexed, ...]
    triggers: bool
    expire: bool
    autoflush: bool

    def ends(self, model: int) -> list[End]:
        """The relationships that a class has."""
        return [end for rel in self.relations for end in rel.ends if end.of == model]

    def end(self, model: int, name: str) -> End:
        return next(end for end in self.ends(model) if end.name == name)

    def changeable(self, model: int) -> list[End]:
        """Those of them that a session may write through."""
        return [end for end in self.ends(model) if not end.view]

    def foreign(self, model: int) -> list[tuple[Rel, Col]]:
        """The columns of a class that hold keys of others, each with the attribute that names it."""
        return [
            (rel, Col(f"{rel.name}_{key.name}", key.type))
            for rel in self.relations
            if rel.of == model and not rel.secondary
            for key in self.models[rel.to].key
        ]


HOWS = ("plain", "plain", "renamed", "deferred", "default", "onupdate")


@st.composite
def _columns(draw: st.DrawFn, prefix: str) -> tuple[Col, ...]:
    made = []
    for at, type_ in enumerate(draw(st.lists(st.sampled_from(_TYPES), min_size=1, max_size=3))):
        hows = [*HOWS]
        if type_ in ("str", "text", "int"):
            hows += ["server_default"] * 2
        if at and type_ == "text":
            hows += ["computed"] * 2
        made.append(Col(f"{prefix}{at}", type_, draw(st.sampled_from(hows)), draw(st.booleans())))
    return tuple(made)


_TYPES = sorted(TYPES) * 3 + sorted(ODD)


@st.composite
def _kinds(draw: st.DrawFn) -> tuple[Kind, ...]:
    if not draw(st.sampled_from((False, False, True))):
        return ()
    return tuple(
        Kind(f"K{at}", joined, tuple(each._replace(null=True) for each in draw(_columns(f"d{at}_"))))
        for at, joined in enumerate(draw(st.lists(st.booleans(), min_size=1, max_size=2)))
    )


@st.composite
def _models(draw: st.DrawFn, at: int) -> Model:
    key = [
        Col(f"k{number}", type_, draw(st.sampled_from(("plain", "plain", "renamed"))), False)
        for number, type_ in enumerate(draw(st.sampled_from(KEY_TYPES)))
    ]
    columns, made = draw(_columns("c")), []
    for number, what in enumerate(draw(st.lists(st.sampled_from(MADE), max_size=2))):
        made.append(Made(f"x{number}", what, draw(st.sampled_from([each.name for each in columns]))))
    some = st.sampled_from((False, False, True))
    return Model(
        f"M{at}", tuple(key), columns, draw(st.booleans()), draw(_kinds()), tuple(made), draw(some), draw(some)
    )


MADE = ("synonym", "hybrid", "property", "expression", "composite")


KEY_TYPES = [("int",)] * 4 + [(type_,) for type_ in KEYS] + [("int", "str"), ("str", "int"), ("uuid", "int")]


@st.composite
def _relations(draw: st.DrawFn, at: int, models: int) -> Rel:
    of, to = draw(st.integers(0, models - 1)), draw(st.integers(0, models - 1))
    secondary = draw(st.sampled_from((False, False, True)))
    forward, back = draw(st.sampled_from(((True, True), (True, False), (False, True))))
    collection = draw(st.sampled_from(("list", "list", "set", "dict")))
    cascade = draw(st.sampled_from(("save-update, merge", "save-update, merge", "all", "all, delete-orphan")))
    lazy = draw(st.sampled_from(("select", "select", "selectin", "joined", "raise")))
    some = st.sampled_from((False, False, True))
    ordered, view, mapped = draw(st.booleans()), draw(some), draw(some)
    return Rel(at, of, to, secondary, forward, back, ordered, collection, cascade, lazy, view, mapped)


@st.composite
def _paths(draw: st.DrawFn, world: World, model: int, kind: int | None) -> str:
    """A column, or one at the end of some relationships."""
    hops: list[str] = []
    while len(hops) < 3 and (ends := world.ends(model)) and draw(st.sampled_from((True, True, False))):
        end = draw(st.sampled_from(ends))
        hops.append(end.name)
        model, kind = end.to, None
    drawn = world.models[model]
    columns = [*drawn.columns_of(kind), *drawn.key, *(column for _, column in world.foreign(model))]
    last = [column.name for column in columns] + [made.name for made in drawn.made if made.what != "composite"]
    return ".".join([*hops, draw(st.sampled_from(last))])


@st.composite
def _entities(draw: st.DrawFn, world: World) -> Indexed:
    at = draw(st.integers(0, len(world.models) - 1))
    model = world.models[at]
    kind = draw(st.sampled_from((None, *range(len(model.kinds)))))
    fields = tuple(draw(st.lists(_paths(world, at, kind), min_size=1, max_size=4, unique=True)))
    by = draw(st.sampled_from(("fields", "fields", "named", "to_document")))
    if by == "to_document" and not _can_be_said(world, at, fields):
        by = "fields"
    when = draw(st.none() | st.sampled_from([column.name for column in model.columns_of(kind)]))
    tenancy = draw(st.sampled_from((None, "shared", "prefixed", "index"))) if model.tenant else None
    watch, by_slug, id_prefix = (
        draw(st.booleans()),
        model.slug and draw(st.booleans()),
        draw(st.sampled_from(("", "p-"))),
    )
    return Indexed(at, kind, fields, by, when, watch, tenancy, by_slug, id_prefix)


def _can_be_said(world: World, model: int, fields: tuple[str, ...]) -> bool:
    """Whether `depends_on` can name all that a function reads along these paths: one way to each model."""
    ways: dict[int, str] = {}
    for path in fields:
        at, way = model, ""
        for name in path.split(".")[:-1]:
            end = world.end(at, name)
            at, way = end.to, f"{way}.{name}"
            if ways.setdefault(at, way) != way or end.rel.lazy == "raise":
                return False
    return True


@st.composite
def worlds(draw: st.DrawFn) -> World:
    number = draw(st.sampled_from((2, 1, 3)))
    models = tuple(draw(_models(at)) for at in range(number))
    relations = tuple(draw(_relations(at, number)) for at in range(draw(st.integers(min(number - 1, 1), 3))))
    drawn = World(models, relations, (), draw(st.booleans()), draw(st.booleans()), draw(st.booleans()))
    return drawn._replace(entities=tuple(draw(st.lists(_entities(drawn), min_size=1, max_size=3))))
