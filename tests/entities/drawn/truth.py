"""What the documents must be, made of the rows by another way than the product's."""

from __future__ import annotations

import enum
import json
from collections.abc import Mapping
from datetime import date, time, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

from sqlalchemy import Engine, select
from sqlalchemy.orm import Session, with_parent

from outbox.destinations.base import Destination
from tests.entities.drawn.mapping import Mapped, condition
from tests.entities.drawn.models import SLUG, TENANT, TENANTS, End, Indexed

Documents = dict[tuple[str, str], Any]


def expected(mapped: Mapped, engine: Engine) -> Documents:
    """By index and `_id`, asked of objects of a session that has seen nothing."""
    found: Documents = {}
    for at, entity in enumerate(mapped.world.entities):
        with Session(engine) as session:
            reader, shown = _Reader(mapped, session, entity), condition(mapped.world, entity)
            for row in session.scalars(select(mapped.class_of(entity.model, entity.kind))).unique():
                if shown(row):
                    found[_place(mapped, f"e{at}", entity, row)] = _settled(mapped, entity, reader.document(row))
    return found


def held(mapped: Mapped, destination: Destination) -> Documents:
    """What the indexes have."""
    found: Documents = {}
    for at, entity in enumerate(mapped.world.entities):
        own = f"e{at}"
        for index in [f"{tenant}_{own}" for tenant in TENANTS] if entity.tenancy == "index" else [own]:
            for page in destination.pages(index, 100):
                read = destination.read(index, list(page))
                found |= {(index, each): _settled(mapped, entity, read[each].source) for each in page}
    return found


def _settled(mapped: Mapped, entity: Indexed, document: dict[str, Any]) -> dict[str, Any]:
    """With members in an order of ours, where the relationship has none."""
    for name, path in entity.named.items():
        if entity.by != "fields":
            field = name if entity.by == "named" else path
            document[field] = in_one_order(document[field])
        else:
            _settle(mapped, entity.model, document, path.split(".")[:-1])
    return document


def _settle(mapped: Mapped, model: int, document: dict[str, Any], hops: list[str]) -> None:
    if not hops or document[hops[0]] is None:
        return
    end, below = mapped.world.end(model, hops[0]), document[hops[0]]
    for each in below if end.many else [below]:
        _settle(mapped, end.to, each, hops[1:])
    if end.many and not (end.rel.ordered and end.rel.collection != "set"):
        document[hops[0]] = in_one_order(below)


def in_one_order(found: Any) -> Any:
    """A list, and lists in it, sorted by what is in them: not by the order in which an object names its fields."""
    if not isinstance(found, list):
        return found
    return sorted(map(in_one_order, found), key=lambda each: json.dumps(each, sort_keys=True))


def _place(mapped: Mapped, index: str, entity: Indexed, row: Any) -> tuple[str, str]:
    parts = [_text(getattr(row, column.name)) for column in mapped.world.models[entity.model].key]
    text = parts[0]
    if entity.by_slug:
        text = getattr(row, SLUG)
    elif len(parts) > 1:
        text = "|".join(part.replace("\\", "\\\\").replace("|", "\\|") for part in parts)
    text = entity.id_prefix + text
    match entity.tenancy:
        case "prefixed":
            return index, f"{len(row.tenant)}:{row.tenant}:{text}"
        case "index":
            return f"{row.tenant}_{index}", text
    return index, text


def _text(part: Any) -> str:
    return part.name if isinstance(part, enum.Enum) else str(part)


class _Reader:
    """Makes documents of objects, each relationship asked for by itself."""

    def __init__(self, mapped: Mapped, session: Session, entity: Indexed) -> None:
        self._mapped, self._session, self._entity = mapped, session, entity

    def document(self, row: Any) -> dict[str, Any]:
        entity = self._entity
        paths = {path: path.split(".") for path in entity.fields}
        if entity.by == "to_document":
            made = {path: self._at_end(entity.model, row, names) for path, names in paths.items()}
        elif entity.by == "named":
            made = {name: self._of_field(entity.model, row, path.split(".")) for name, path in entity.named.items()}
        else:
            made = self._branch(entity.model, row, list(paths.values()))
        if entity.tenancy is not None:
            made["tenantId"] = getattr(row, TENANT)
        return made

    def _branch(self, model: int, row: Any, paths: list[list[str]]) -> dict[str, Any]:
        made: dict[str, Any] = {path[0]: as_json(getattr(row, path[0])) for path in paths if len(path) == 1}
        for name in dict.fromkeys(path[0] for path in paths if len(path) > 1):
            end = self._mapped.world.end(model, name)
            below = [path[1:] for path in paths if len(path) > 1 and path[0] == name]
            members = [self._branch(end.to, each, below) for each in self._related(row, end)]
            made[name] = members if end.many else next(iter(members), None)
        return made

    def _at_end(self, model: int, row: Any, names: list[str]) -> Any:
        if len(names) == 1:
            return as_json(getattr(row, names[0]))
        end = self._mapped.world.end(model, names[0])
        members = [self._at_end(end.to, each, names[1:]) for each in self._related(row, end)]
        return members if end.many else next(iter(members), None)

    def _of_field(self, model: int, row: Any, names: list[str]) -> Any:
        """The value at the end of a path; through relationships to many one list of values."""
        if len(names) == 1:
            return as_json(getattr(row, names[0]))
        end = self._mapped.world.end(model, names[0])
        values = [self._of_field(end.to, each, names[1:]) for each in self._related(row, end)]
        if not end.many:
            return next(iter(values), None)
        return [one for each in values for one in (each if isinstance(each, list) else [each])]

    def _related(self, row: Any, end: End) -> list[Any]:
        target, attribute = self._mapped.classes[end.to], getattr(self._mapped.classes[end.of], end.name)
        statement = select(target).where(with_parent(row, attribute)).order_by(*(attribute.property.order_by or ()))
        return list(self._session.scalars(statement).unique())


def as_json(value: Any) -> Any:
    """As JSON gives it back."""
    match value:
        case enum.Enum():
            return as_json(value.value)
        case Decimal():
            return float(value)
        case date() | time():
            return value.isoformat()
        case timedelta() | bytes():  # as `by_hand` writes them
            return repr(value)
        case UUID():
            return str(value)
        case Mapping():
            return {key: as_json(each) for key, each in value.items()}
        case list() | tuple():
            return [as_json(each) for each in value]
    return value
