"""Which rows of a state a caller has chosen, by the words that commands have."""

from __future__ import annotations

from typing import Any

from outbox import tenants
from outbox.entities.registry import EntityRegistry
from outbox.entities.spelling import tenant_texts
from outbox.errors import OutboxError
from outbox.settings import span_ms
from outbox.store import operators
from outbox.store.models import State, now_ms
from outbox.store.store import Store


class NotFound(OutboxError):
    """What was asked for does not exist."""


def spellings(registry: EntityRegistry | None, tenant: str | None) -> tuple[str, ...]:
    """All spellings of a tenant that is asked for; none if none is."""
    return () if tenant is None else tenant_texts(tenant, registry or ())


def chosen(
    store: Store,
    registry: EntityRegistry | None,
    state: State,
    *,
    tenant: str | None = None,
    older_than: str | None = None,
    **selection: Any,
) -> list[int]:
    """The ids of dead or pending rows that fit all that is given.

    Raises `NotFound` if none of the named is in that state, and `UnknownTenant`.
    """
    before = None if older_than is None else now_ms() - span_ms(older_than)
    selection |= {"tenants": spellings(registry, tenant), "written_before": before}
    if state is State.DEAD:
        ids = [row["id"] for row in operators.dead(store, **selection)]
    else:
        ids = operators.pending(store, **selection)
    if not ids and tenant is not None:
        tenants.require(store, registry, tenant)
    if not ids and selection.get("ids"):
        numbers = ", ".join(map(str, selection["ids"]))
        raise NotFound(f"no {state} row {numbers}: it was retried or removed meanwhile, or is not {state}")
    return ids
