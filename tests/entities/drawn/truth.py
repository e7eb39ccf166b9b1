"""What the documents must be, made of the rows by another way than the product's."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from datetime import date, time
from decimal import Decimal
from typing import Any
from uuid import UUID

from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from outbox.destinations.base import Destination
from tests.entities.drawn.mapping import Mapped, condition
from tests.entities.drawn.models import TENANT, TENANTS, Indexed

Documents = dict[tuple[str, str], Any]


def expected(mapped: Mapped, engine: Engine) -> Documents:
    """By index and `_id`, asked of objects of a session that has seen nothing."""
    found: Documents = {}
    for at, entity in enumerate(mapped.world.entities):
        with Session(engine) as session:
            shown = condition(mapped.world, entity)
            for row in session.scalars(select(mapped.classes[entity.model])).unique():
                if shown(row):
                    found[_place(mapped, f"e{at}", entity, row)] = _document(entity, row)
    return found


def held(mapped: Mapped, destination: Destination) -> Documents:
    """What the indexes have."""
    found: Documents = {}
    for at, entity in enumerate(mapped.world.entities):
        own = f"e{at}"
        for index in [f"{tenant}_{own}" for tenant in TENANTS] if entity.tenancy == "index" else [own]:
            for page in destination.pages(index, 100):
                read = destination.read(index, list(page))
                found |= {(index, document_id): read[document_id].source for document_id in page}
    return found


def _place(mapped: Mapped, index: str, entity: Indexed, row: Any) -> tuple[str, str]:
    parts = [_text(getattr(row, column.name)) for column in mapped.world.models[entity.model].key]
    text = parts[0]
    if len(parts) > 1:
        text = "|".join(part.replace("\\", "\\\\").replace("|", "\\|") for part in parts)
    match entity.tenancy:
        case "prefixed":
            return index, f"{len(row.tenant)}:{row.tenant}:{text}"
        case "index":
            return f"{row.tenant}_{index}", text
    return index, text


def _text(part: Any) -> str:
    return part.name if isinstance(part, enum.Enum) else str(part)


def _document(entity: Indexed, row: Any) -> dict[str, Any]:
    made = {name: as_json(getattr(row, name)) for name in entity.fields}
    if entity.tenancy is not None:
        made["tenantId"] = getattr(row, TENANT)
    return made


def as_json(value: Any) -> Any:
    """As JSON gives it back."""
    match value:
        case enum.Enum():
            return as_json(value.value)
        case Decimal():
            return float(value)
        case date() | time():
            return value.isoformat()
        case UUID():
            return str(value)
        case Mapping():
            return {key: as_json(each) for key, each in value.items()}
        case list() | tuple():
            return [as_json(each) for each in value]
    return value
