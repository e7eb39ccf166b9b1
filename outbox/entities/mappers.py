"""The mapped classes of an application, whichever base or registry they are declared with."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sqlalchemy import MetaData, Table
from sqlalchemy.orm import Mapper, mapperlib, registry


def registries_beside(mappers: Iterable[Mapper[Any]]) -> list[registry]:
    """Those of some classes, and all others with classes on tables of the same `MetaData`."""
    metadata = {each for mapper in mappers for each in _metadata(mapper.registry)}
    # Nothing public lists all registries. SQLAlchemy's own `configure_mappers()` goes by this, in 2.0 and 2.1.
    return [each for each in mapperlib._all_registries() if not metadata.isdisjoint(_metadata(each))]


def mappers_beside(mappers: Iterable[Mapper[Any]]) -> list[Mapper[Any]]:
    """Their classes, in the order of their names: whatever may write the tables of some classes."""
    return sorted((each for found in registries_beside(mappers) for each in found.mappers), key=str)


def _metadata(found: registry) -> set[MetaData]:
    tables = (table for mapper in found.mappers for table in mapper.tables if isinstance(table, Table))
    return {found.metadata, *(table.metadata for table in tables)}
