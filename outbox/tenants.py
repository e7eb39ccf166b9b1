"""Whether there is such a tenant; and to remove one: its rows, its documents, and the indexes that only it uses."""

from __future__ import annotations

import time
from dataclasses import dataclass

from outbox import documents
from outbox.destinations.base import Destination
from outbox.entities.keys import Tenancy, is_tenant_index
from outbox.entities.registry import EntityRegistry
from outbox.entities.spelling import MOST_NAMED, is_known, some_tenants, tenant_texts, unknown
from outbox.errors import OutboxError
from outbox.store import figures, operators
from outbox.store.models import now_ms
from outbox.store.operators import Report, no_report
from outbox.store.store import Store

PAGE = 1_000
LOOK_EVERY_S = 0.2


def require(store: Store, registry: EntityRegistry | None, tenant: str) -> None:
    """Raises `UnknownTenant` if nothing in the database is of the tenant, however it is spelled: no row of the outbox
    that is unfinished, dead or in the statistics, and none of an entity."""
    entities = list(registry or ())
    if not figures.has_tenant(store, tenant_texts(tenant, entities)) and not is_known(store, entities, tenant):
        raise unknown(tenant, _some(store, registry))


def _some(store: Store, registry: EntityRegistry | None) -> list[str]:
    """Tenants that there are; not all, if there are many."""
    return [*figures.tenants(store, MOST_NAMED), *some_tenants(store, registry or ())]


@dataclass(frozen=True, slots=True)
class Holdings:
    """What a tenant has."""

    tenants: tuple[str, ...]  # all its spellings
    rows: int
    own_indexes: list[str]
    documents: dict[str, list[str]]  # index → ids, in indexes that it shares with others


@dataclass(frozen=True, slots=True)
class Dropped:
    """What became of it. `indexes`: physical ones."""

    rows: int
    indexes: list[str]
    deletes: int  # rows that a relay has to deliver now
    left: int  # rows that a relay had in its hands


def holdings(store: Store, destination: Destination, registry: EntityRegistry | None, tenant: object) -> Holdings:
    """What `drop` would remove of a tenant, however it is spelled. Changes nothing.

    Of the indexes that rows go to, or name, a tenant owns those that the registry names after it. In all others its
    documents are those with its `tenantId`, and those without one that have rows of the tenant.
    Raises `InvalidName` for what is no tenant id, `UnknownTenant` if there is nothing, and `DestinationError`.
    """
    documents.tenant_text(tenant)
    tenants = tenant_texts(tenant, registry or ())
    targets = store.targets()
    apart = [entity.index for entity in registry or () if entity.tenancy is Tenancy.INDEX]
    of_rows = operators.documents_of_tenant(store, tenants)
    named = {*targets, *of_rows}
    own = sorted(name for name in named if any(is_tenant_index(name, each, tenants) for each in apart))
    found: dict[str, list[str]] = {}
    for name, target in targets.items():
        if name in own:
            continue
        ids = of_rows.get(name, set())
        for page in destination.pages(target, PAGE, tenants=True):
            ids |= {document_id for document_id, listed in page.items() if listed.tenant_id in tenants}
            # A document with rows of this tenant may be another tenant's by now.
            ids -= {document_id for document_id, listed in page.items() if listed.tenant_id not in (None, *tenants)}
        if ids:
            found[name] = sorted(ids)
    rows = operators.rows_of_tenant(store, tenants)
    if not (rows or own or found):
        raise unknown(tenants[0], _some(store, registry))
    return Holdings(tenants, rows, own, found)


def drop(
    store: Store,
    destination: Destination,
    held: Holdings,
    tenant: str,
    *,
    timeout: float = 60.0,
    report: Report = no_report,
) -> Dropped:
    """Remove what was found. `report`: of rows.

    Documents in shared indexes are removed by `delete` rows, in the order of all rows, so that no document of the
    tenant that a relay is just delivering comes back, not even as the first of its index. An index of its own is
    removed as soon as no relay delivers to it. The application must have stopped writing for the tenant.
    Raises `OutboxError` if a relay still delivers to such an index after `timeout` seconds, and `DestinationError` if
    one cannot be removed; what is left is found again then.
    """
    removed = operators.remove_rows_of_tenant(store, held.tenants, report)
    left = operators.rows_of_tenant(store, held.tenants)
    under_way = operators.documents_of_tenant(store, held.tenants)
    deletes = 0
    for name in sorted({*held.documents, *under_way}.difference(held.own_indexes)):
        ids = sorted({*held.documents.get(name, ()), *under_way.get(name, ())})
        for start in range(0, len(ids), PAGE):
            deletes += operators.write_deletes(store, name, ids[start : start + PAGE], tenant, now_ms())
    indexes: list[str] = []
    deadline = time.monotonic() + timeout
    for name in held.own_indexes:
        while (targets := operators.targets_at_rest(store, name)) is None:
            if time.monotonic() > deadline:
                raise OutboxError(
                    f"index {name} was not removed: a relay still delivers rows to it after {timeout:g} s; see "
                    "'outbox-relay status' and run the command again"
                )
            time.sleep(LOOK_EVERY_S)
        for target in targets:
            destination.drop_index(target)  # before it is forgotten: if it fails, the next run finds it again
            indexes.append(target)
        operators.forget_index(store, name)
    return Dropped(removed, indexes, deletes, left)
