"""Which rows of an entity are meant, in SQL."""

from __future__ import annotations

from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Select, false

from outbox import documents
from outbox.entities.entity import Entity


class Part(NamedTuple):
    """Which rows of an entity: of one tenant, changed since then, or all."""

    tenant: str | None = None
    since: Any = None

    def of(self, entity: Entity, statement: Select[Any]) -> Select[Any]:
        if self.tenant is not None:
            if entity.tenant is None:
                return statement.where(false())  # an entity without tenants has nothing of one
            statement = statement.where(_is_tenant(entity, entity.tenant, self.tenant))
        if self.since is not None and entity.changed_at is not None:
            statement = statement.where(entity.column(entity.changed_at) >= self.since)
        return statement


def _is_tenant(entity: Entity, attribute: str, tenant: str) -> ColumnElement[bool]:
    """Whether a row is of a tenant. Text is compared with each spelling; other types have one of their own."""
    column, form, meant = entity.column(attribute), entity.tenant_form, entity.tenant_meant(tenant)
    if form is None or meant is None:  # no tenant of this type
        return false()
    if form.from_text is str:
        found: ColumnElement[bool] = column.in_(documents.tenant_spellings(tenant))
        return found
    same: ColumnElement[bool] = column == form.from_text(meant)
    return same
