"""One tenant, many spellings: a UUID with dashes or without, an enum's member by name or by value, 7 or "7"."""

from __future__ import annotations

from collections.abc import Iterable

from outbox import documents
from outbox.entities import loader
from outbox.entities.entity import Entity
from outbox.entities.keys import Tenancy, is_tenant_index
from outbox.entities.loader import Part
from outbox.errors import UnknownTenant, shortened
from outbox.store.store import Store

MOST_NAMED = 10


def tenant_texts(tenant: object, entities: Iterable[Entity] = ()) -> tuple[str, ...]:
    """The texts that mean a tenant in rows and documents, of these entities too; first the one that was given.

    Raises `InvalidName` for what can be no tenant.
    """
    meant = [entity.tenant_meant(tenant) for entity in entities]
    spelled = [tenant, *(text for text in meant if text)]
    return tuple(dict.fromkeys(text for each in spelled for text in documents.tenant_spellings(each)))


def is_known(store: Store, entities: Iterable[Entity], tenant: str) -> bool:
    """Whether a row of these entities is of the tenant, or an index of their documents is its own."""
    targets = store.targets()
    for entity in entities:
        if loader.count(store.connection, entity, Part(tenant)):
            return True
        texts = tenant_texts(tenant, [entity])
        if entity.tenancy is Tenancy.INDEX and any(is_tenant_index(name, entity.index, texts) for name in targets):
            return True  # its rows are gone, its index is not
    return False


def some_tenants(store: Store, entities: Iterable[Entity]) -> list[str]:
    """Tenants that have rows of these entities; not all, if there are many."""
    return [each for entity in entities for each in loader.tenants(store.connection, entity, MOST_NAMED)]


def unknown(tenant: str, there_are: Iterable[str]) -> UnknownTenant:
    """The error that there is no such tenant, with some that there are."""
    names = sorted(set(there_are))
    more = ", …" if len(names) >= MOST_NAMED else ""
    there = f"there are {', '.join(names[:MOST_NAMED])}{more}" if names else "there is none"
    return UnknownTenant(f"there is no tenant {shortened(tenant)}; {there}")
