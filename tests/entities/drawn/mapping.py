"""The classes and the registry of a drawn world."""

from __future__ import annotations

from typing import Any

from sqlalchemy import String, text
from sqlalchemy.orm import DeclarativeBase, configure_mappers, mapped_column

from outbox import EntityRegistry
from tests.entities.drawn.models import TENANT, Col, Indexed, Model, World
from tests.entities.drawn.types import TYPES, value


class Mapped:
    """The classes of a world. Dispose of it: else classes of one world are known to the next."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.base: Any = type("Base", (DeclarativeBase,), {})
        self.classes: list[type[Any]] = [_class(self.base, model) for model in world.models]
        configure_mappers()

    def registered(self) -> EntityRegistry:
        """Raises `ConfigurationError` for what may not be registered."""
        made = EntityRegistry()
        for at, entity in enumerate(self.world.entities):
            made.add(self.classes[entity.model], name=f"e{at}", index=f"e{at}", **_options(self.world, entity))
        return made

    def dispose(self) -> None:
        self.base.registry.dispose()


def _class(base: Any, model: Model) -> type[Any]:
    parts: dict[str, Any] = {"__tablename__": model.name.lower()}
    parts |= {each.name: _column(each, primary_key=True) for each in model.key}
    parts |= {each.name: _column(each) for each in model.columns}
    if model.tenant:
        parts[TENANT] = mapped_column(String, nullable=False)
    return type(model.name, (base,), parts)


def _column(column: Col, *, primary_key: bool = False) -> Any:
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
    return mapped_column(column.column, TYPES[column.type].make(), **options)


def _options(world: World, entity: Indexed) -> dict[str, Any]:
    made: dict[str, Any] = {"fields": list(entity.fields)}
    if entity.when is not None:
        made["when"] = condition(world, entity)
        if entity.watch:
            made["watch"] = [entity.when]
    if entity.tenancy is not None:
        made |= {"tenant": TENANT, "tenancy": entity.tenancy}
    return made


def condition(world: World, entity: Indexed) -> Any:
    """Which rows of an entity have a document."""
    name = entity.when
    if name is None:
        return lambda _row: True
    column = next(each for each in world.models[entity.model].columns if each.name == name)
    excluded = value(column.type, 0)
    return lambda row: getattr(row, name) != excluded
