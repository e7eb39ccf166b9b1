"""The classes and the registry of a drawn world."""

from __future__ import annotations

from datetime import timedelta
from typing import Any, NamedTuple

from sqlalchemy import (
    Column,
    Computed,
    ForeignKeyConstraint,
    Integer,
    LargeBinary,
    PickleType,
    String,
    Table,
    and_,
    cast,
    func,
    text,
)
from sqlalchemy.ext.hybrid import hybrid_property
from sqlalchemy.orm import (
    DeclarativeBase,
    column_property,
    composite,
    configure_mappers,
    foreign,
    keyfunc_mapping,
    mapped_column,
    relationship,
    remote,
    synonym,
)
from sqlalchemy.types import TypeEngine

from outbox import EntityRegistry
from tests.entities.drawn.models import SLUG, TENANT, Col, End, Indexed, Kind, Made, Rel, World
from tests.entities.drawn.types import made, value


class Mapped:
    """The classes of a world. Dispose of it: else classes of one world are known to the next."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.base: Any = type("Base", (DeclarativeBase,), {})
        self.classes: list[type[Any]] = [self._class(at) for at in range(len(world.models))]
        self.kinds = [[self._kind(at, kind) for kind in model.kinds] for at, model in enumerate(world.models)]
        self.between = {rel.name: self._between(rel) for rel in world.relations if rel.secondary}
        self.associations = {
            rel.name: type(f"A{rel.at}", (self.base,), {"__table__": self.between[rel.name]})
            for rel in world.relations
            if rel.secondary and rel.mapped
        }
        for rel in world.relations:
            for end in rel.ends:
                setattr(self.classes[end.of], end.name, self._relationship(end))
        configure_mappers()

    def dispose(self) -> None:
        self.base.registry.dispose()

    def class_of(self, model: int, kind: int | None) -> type[Any]:
        """A class, or a subclass of it."""
        return self.classes[model] if kind is None else self.kinds[model][kind]

    def registered(self) -> EntityRegistry:
        """Raises `ConfigurationError` for what may not be registered."""
        made = EntityRegistry()
        for at, entity in enumerate(self.world.entities):
            made.add(self.class_of(entity.model, entity.kind), name=f"e{at}", index=f"e{at}", **self._options(entity))
        return made

    def _class(self, at: int) -> type[Any]:
        model = self.world.models[at]
        parts: dict[str, Any] = {"__tablename__": model.name.lower(), "__mapper_args__": {}}
        parts |= {each.name: _column(each, primary_key=True) for each in model.key}
        parts |= {each.name: _column(each, of=model.columns[0]) for each in model.columns}
        parts |= {each.name: _column(each) for _, each in self.world.foreign(at)}
        if model.tenant:
            parts[TENANT] = mapped_column(String, nullable=False)
        if model.slug:
            parts[SLUG] = mapped_column(String, nullable=False, unique=True)
        if model.kinds:
            parts["kind"] = mapped_column(String, nullable=False, server_default=model.name)
            parts["__mapper_args__"] |= {"polymorphic_on": "kind", "polymorphic_identity": model.name}
        if model.version:
            parts["version"] = mapped_column(Integer, nullable=False, server_default="1")
            parts["__mapper_args__"] |= {"version_id_col": parts["version"]}
        class_ = type(model.name, (self.base,), parts)
        for each in model.made:
            setattr(class_, each.name, _attribute(class_, each))
        return class_

    def _kind(self, at: int, kind: Kind) -> type[Any]:
        model, name = self.world.models[at], f"{self.world.models[at].name}{kind.name}"
        parts: dict[str, Any] = {each.name: _column(each, of=kind.columns[0]) for each in kind.columns}
        if kind.joined:
            above = [f"{model.name.lower()}.{key.column}" for key in model.key]
            parts |= {each.name: _column(each, primary_key=True) for each in model.key}
            parts["__tablename__"] = name.lower()
            parts["__table_args__"] = (ForeignKeyConstraint([key.column for key in model.key], above),)
        return type(name, (self.classes[at],), parts | {"__mapper_args__": {"polymorphic_identity": name}})

    def _between(self, rel: Rel) -> Table:
        """The table of a many-to-many relationship."""
        columns, keys = [], []
        for side, model in (("of", self.world.models[rel.of]), ("to", self.world.models[rel.to])):
            names = [f"{side}_{key.name}" for key in model.key]
            columns += [
                Column(name, made(key.type), primary_key=True) for name, key in zip(names, model.key, strict=True)
            ]
            keys.append(ForeignKeyConstraint(names, [f"{model.name.lower()}.{key.column}" for key in model.key]))
        return Table(rel.name, self.base.metadata, *columns, *keys)

    def _relationship(self, end: End) -> Any:
        rel, of, to = end.rel, self.classes[end.rel.of], self.classes[end.rel.to]
        options: dict[str, Any] = {"passive_updates": False, "lazy": rel.lazy}
        if end.view:
            options = {"viewonly": True}
        elif rel.forward and rel.back:
            options["back_populates"] = f"{rel.name}_of" if end.name == rel.name else rel.name
        key = self.world.models[rel.to].key
        if rel.secondary:
            table = options["secondary"] = self.between[rel.name]
            joins = [
                and_(*(getattr(class_, each.name) == table.c[f"{side}_{each.name}"] for each in model.key))
                for side, class_, model in (
                    ("of", of, self.world.models[rel.of]),
                    ("to", to, self.world.models[rel.to]),
                )
            ]
            options["primaryjoin"], options["secondaryjoin"] = joins if end.name == rel.name else joins[::-1]
        else:
            pairs = [(getattr(of, f"{rel.name}_{each.name}"), getattr(to, each.name)) for each in key]
            if end.name == rel.name:
                options["primaryjoin"] = and_(*(foreign(pointing) == remote(at) for pointing, at in pairs))
            else:
                options["primaryjoin"] = and_(*(remote(foreign(pointing)) == at for pointing, at in pairs))
            if end.view:
                first = self.world.models[rel.of].columns[0]
                options["primaryjoin"] &= getattr(of, first.name) == value(first.type, 1)
        if end.many:
            options |= self._collection(end)
        return relationship(self.classes[end.to], **options)

    def _collection(self, end: End) -> dict[str, Any]:
        target, model = self.classes[end.to], self.world.models[end.to]
        options: dict[str, Any] = {}
        if not end.view:
            options["collection_class"] = {"list": list, "set": set}.get(end.rel.collection)
        if end.rel.collection == "dict" and not end.view:
            options["collection_class"] = keyfunc_mapping(
                lambda each: tuple(getattr(each, key.name) for key in model.key)
            )
        if end.rel.ordered:
            options["order_by"] = [getattr(target, each.name) for each in (model.columns[0], *model.key)]
        if not end.rel.secondary and not end.view:
            options["cascade"] = end.rel.cascade
        return options

    def _options(self, entity: Indexed) -> dict[str, Any]:
        made: dict[str, Any] = {"fields": entity.named if entity.by == "named" else list(entity.fields)}
        if entity.by == "to_document":
            made = {
                "to_document": lambda row: by_hand(entity.fields, row),
                "depends_on": self._depends_on(entity),
            }
        if entity.when is not None:
            made["when"] = condition(self.world, entity)
        if entity.watch and (entity.when is not None or entity.by == "to_document"):
            made["watch"] = sorted(self._looked_at(entity))
        if entity.tenancy is not None:
            made |= {"tenant": TENANT, "tenancy": entity.tenancy}
        if entity.by_slug:
            made["id"] = SLUG
        return made | {"id_prefix": entity.id_prefix}

    def _looked_at(self, entity: Indexed) -> set[str]:
        """The columns of a row that functions look at."""
        columns = {each.name: each.column for each in self.world.models[entity.model].made}
        own = {path for path in entity.fields if "." not in path and entity.by == "to_document"}
        return {columns.get(path, path) for path in (*own, *filter(None, [entity.when]))}

    def _depends_on(self, entity: Indexed) -> dict[Any, str]:
        """By the relationships that the document is made along."""
        found: dict[Any, str] = {}
        for path in entity.fields:
            model, hops = entity.model, path.split(".")[:-1]
            for at, name in enumerate(hops):
                model = self.world.end(model, name).to
                found.setdefault(self.classes[model], ".".join(hops[: at + 1]))
        return found


class Single(NamedTuple):
    """What a composite of one column is."""

    value: Any

    def __composite_values__(self) -> tuple[Any]:
        return (self.value,)


def _reading(given: Made) -> Any:
    """A function of that name, which a hybrid needs."""

    def read(row: Any) -> Any:
        return getattr(row, given.column)

    read.__name__ = given.name
    return read


def _attribute(class_: type[Any], given: Made) -> Any:
    """An attribute that is made of a column."""
    match given.what:
        case "synonym":
            return synonym(given.column)
        case "hybrid":
            return hybrid_property(_reading(given))
        case "property":
            return property(lambda row: f"{getattr(row, given.column)}!")
        case "expression":
            column = getattr(class_, given.column)
            readable = cast(column, String) if _is_text(column.type) else func.hex(column)
            return column_property(func.coalesce(readable, "nothing"))
    return composite(Single, given.column)


def _is_text(type_: TypeEngine[Any]) -> bool:
    """Whether a database can give back as text what it holds: of any other bytes the driver makes no `str`."""
    return not isinstance(type_, (LargeBinary, PickleType))


def _column(column: Col, *, primary_key: bool = False, of: Col | None = None) -> Any:
    options: dict[str, Any] = {"primary_key": True} if primary_key else {"nullable": column.null}
    match column.how:
        case "deferred":
            options["deferred"] = True
        case "default":
            options["default"] = value(column.type, 1)
        case "onupdate":
            options["onupdate"] = lambda: value(column.type, 2)
        case "server_default":
            options["server_default"] = text("'7'")
        case "computed":
            assert of is not None
            readable = of.column if _is_text(made(of.type)) else f"hex({of.column})"
            generated = Computed(f"coalesce({readable}, '') || '!'")
            return mapped_column(column.column, made(column.type), generated)
    return mapped_column(column.column, made(column.type), **options)


def by_hand(paths: tuple[str, ...], row: Any) -> dict[str, Any]:
    """A document that a function makes: of each path, all that is at its end."""
    return {path: _at_end(row, path.split(".")) for path in paths}


def _at_end(row: Any, names: list[str]) -> Any:
    if row is None or not names:
        return row
    found = getattr(row, names[0])
    if len(names) == 1:
        return repr(found) if isinstance(found, (bytes, timedelta)) else found
    if isinstance(found, (list, set, dict)):
        members = found.values() if isinstance(found, dict) else found
        return sorted((_at_end(each, names[1:]) for each in members), key=repr)
    return _at_end(found, names[1:])


def condition(world: World, entity: Indexed) -> Any:
    """Which rows of an entity have a document."""
    name = entity.when
    if name is None:
        return lambda _row: True
    column = next(each for each in world.models[entity.model].columns_of(entity.kind) if each.name == name)
    excluded = value(column.type, 0)
    return lambda row: getattr(row, name) != excluded
