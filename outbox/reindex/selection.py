"""Which indexes to rebuild, and which part of their documents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any

from sqlalchemy import Date, DateTime, Integer, TypeDecorator

from outbox.entities import loader
from outbox.entities.checks import listed
from outbox.entities.entity import Entity
from outbox.entities.keys import Tenancy, is_tenant_index
from outbox.entities.loader import Part
from outbox.entities.refusals import nearest
from outbox.entities.registry import EntityRegistry
from outbox.entities.spelling import is_known, some_tenants, tenant_texts, unknown
from outbox.errors import ConfigurationError, shortened
from outbox.store.jobs import Job
from outbox.store.store import Store


@dataclass(frozen=True, slots=True)
class Selection:
    """An index to rebuild, of which entities, and which part of them."""

    index: str
    entities: tuple[Entity, ...]
    tenant: str | None = None
    since: str | None = None
    in_place: bool = False
    keep_old: bool = False
    adopt: bool = False

    @classmethod
    def of(cls, job: Job, entities: Sequence[Entity] = ()) -> Selection:
        """What a job was asked for."""
        return cls(
            job.index_name,
            tuple(entities),
            tenant=job.tenant_id,
            since=job.since,
            in_place=job.new_index is None,
            keep_old=bool(job.keep_old),
            adopt=bool(job.adopt),
        )

    def part_of(self, entity: Entity) -> Part:
        """The rows of an entity that belong to it."""
        tenant = self.tenant
        if entity.tenancy is Tenancy.INDEX:
            tenant = self.index[: -len(entity.index) - 1]
        return Part(tenant, None if self.since is None else instant(entity, self.since))


def select(
    store: Store,
    registry: EntityRegistry,
    *,
    entities: Sequence[str] = (),
    everything: bool = False,
    tenant: object = None,
    since: str | None = None,
    in_place: bool = False,
    keep_old: bool = False,
    adopt: bool = False,
) -> list[Selection]:
    """The indexes to rebuild. Raises `ConfigurationError` for what does not exist, and lists what does.

    `tenant` may be spelled in any way, see `tenant_texts`; `UnknownTenant` if no row is of it.
    """
    if tenant is not None:
        tenant = tenant_texts(tenant)[0]
    chosen = list(registry) if everything else [_entity(store, registry, name) for name in entities]
    if not chosen:
        raise ConfigurationError("no entity is registered: add the application's models to the registry")
    names = list(dict.fromkeys(name for entity in chosen for name in _index_names(store, entity, tenant)))
    found = []
    for name in names:
        of_index = tuple(registry.of_index(name))
        if since is not None:
            for entity in of_index:
                instant(entity, since)  # raises
        whole = of_index[0].tenancy is Tenancy.INDEX  # the index of a tenant holds nothing else
        if tenant is not None and not whole:
            of_index = tuple(entity for entity in of_index if entity.tenant)
            if not of_index:
                if everything:
                    continue
                raise ConfigurationError(f"the entities of index {name} have no tenant; leave out --tenant")
        part = since is not None or (tenant is not None and not whole)
        found.append(
            Selection(
                name,
                of_index,
                tenant=None if whole else tenant,
                since=since,
                in_place=in_place or part,
                keep_old=keep_old,
                adopt=adopt,
            )
        )
    if tenant is not None:
        _check_tenant(store, chosen, tenant)
    _check_options(found, keep_old=keep_old, adopt=adopt)
    return found


def _check_options(found: Sequence[Selection], *, keep_old: bool, adopt: bool) -> None:
    for each in found:
        if each.in_place and (keep_old or adopt):
            raise ConfigurationError(
                f"index {each.index} is rebuilt in place, there is no old one to keep or to adopt: leave out "
                f"{'--keep-old' if keep_old else '--adopt'}"
            )
    if keep_old and adopt:
        raise ConfigurationError("an index that gives its name away cannot be kept: leave out --keep-old or --adopt")


def _entity(store: Store, registry: EntityRegistry, name: str) -> Entity:
    known = {entity.name: entity for entity in registry}
    if name in known:
        return known[name]
    instead = listed(known)
    if of_index := registry.of_index(name):
        instead = f"; the index {name} is that of {', '.join(entity.name for entity in of_index)}"
    elif name in store.targets():
        instead += (
            f"; the index {name} cannot be rebuilt before its model is registered: registry.add(Model, index={name!r}, "
            "fields=[…])"
        )
    raise ConfigurationError(f"no entity {shortened(name)} is registered{instead}{nearest(name, known)}")


def _index_names(store: Store, entity: Entity, tenant: str | None) -> list[str]:
    if entity.tenancy is not Tenancy.INDEX:
        return [entity.index]
    known = [name for name in store.targets() if entity.index_names(name)]
    of_rows = [f"{each}_{entity.index}" for each in loader.tenants(store.connection, entity)]
    names = sorted({*known, *(name for name in of_rows if entity.index_names(name))})
    wanted = None if tenant is None else tenant_texts(tenant, [entity])
    return [name for name in names if is_tenant_index(name, entity.index, wanted)]


def _check_tenant(store: Store, chosen: Sequence[Entity], tenant: str) -> None:
    with_tenant = [entity for entity in chosen if entity.tenant]
    if not with_tenant:
        raise ConfigurationError(f"{', '.join(entity.name for entity in chosen)}: no tenant is registered there")
    if not is_known(store, with_tenant, tenant):
        raise unknown(tenant, some_tenants(store, with_tenant))


def instant(entity: Entity, since: str) -> Any:
    """A date as it compares with the `changed_at` of an entity. Raises `ConfigurationError`.

    An application's own type over one of SQLAlchemy's, and a column with a time zone, are asked with an instant that
    has one, UTC by default: that of a session differs from server to server.
    """
    if entity.changed_at is None:
        raise ConfigurationError(f"entity {entity.name!r} has no changed_at, which --from-date needs: register it")
    column = getattr(entity.column(entity.changed_at), "type", None)
    if own := isinstance(column, TypeDecorator):
        column = column.impl_instance
    try:
        if isinstance(column, Integer):
            return int(since)
        parsed = datetime.fromisoformat(since)
    except ValueError:
        what = "a whole number" if isinstance(column, Integer) else "a date, e.g. 2026-11-01 or 2026-11-01T12:00:00"
        raise ConfigurationError(f"--from-date {shortened(since)} is not {what}") from None
    if isinstance(column, DateTime):
        zoned = own or column.timezone
        if parsed.tzinfo is None:
            return parsed.replace(tzinfo=UTC) if zoned else parsed
        # In UTC in any case: SQLite keeps no time zone, and drops it.
        return parsed.astimezone(UTC) if zoned else parsed.astimezone(UTC).replace(tzinfo=None)
    if isinstance(column, Date):
        return date(parsed.year, parsed.month, parsed.day)
    return since


def rows_of(store: Store, chosen: Selection) -> int:
    """How many rows the scan will read."""
    return sum(loader.count(store.connection, entity, chosen.part_of(entity)) for entity in chosen.entities)
