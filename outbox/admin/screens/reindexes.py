"""The rebuilds of indexes: what runs, what has ended, what one would do, and the way back."""

from __future__ import annotations

from loguru import logger
from pydantic import Field

from outbox import logs
from outbox.admin.context import AdminContext
from outbox.admin.shapes import Model, ReindexJob, Text
from outbox.errors import InvalidInput
from outbox.reindex.rollback import roll_back as rolled_back
from outbox.reindex.selection import rows_of, select
from outbox.store import audit, by_index, jobs


class Planned(Model):
    """What a reindex of one index would do."""

    index: str
    entities: list[str]
    documents: int = Field(description="that it would write, about")
    in_place: bool = Field(description="it writes to the live index; else to a new one, which readers get in the end")


class KeptIndex(Model):
    """An index that a rebuild with keepOld has kept, and that rows still go to."""

    index: str
    kept: str = Field(description="the physical index that a rollback gives readers back")
    refused: int = Field(description="documents that it did not take since the rebuild: it would miss them")


class RollbackRequest(Model):
    index: Text


class RolledBack(Model):
    index: str
    live: str = Field(description="the physical index that readers and rows have again")
    refused: int = Field(description="documents that it misses: a reindex brings them in")


def reindexes(admin: AdminContext, limit: int) -> list[ReindexJob]:
    """The newest, those that have not ended first."""
    with admin.database.store() as store:
        found = [ReindexJob.of(store, each, admin.settings.admin_hide) for each in jobs.newest(store, limit)]
    return sorted(found, key=lambda job: job.finished_at is not None)


def kept(admin: AdminContext) -> list[KeptIndex]:
    """The indexes of which a rebuild has kept the old one."""
    with admin.database.store() as store:
        return [KeptIndex(index=each[0], kept=each[1], refused=each[2]) for each in by_index.kept(store)]


def planned(
    admin: AdminContext, entity: str, tenant: str | None, since: str | None, *, keep_old: bool
) -> list[Planned]:
    """What a reindex would do. Raises `ConfigurationError` for what does not exist, or does not go together."""
    if admin.registry is None:
        raise InvalidInput("no registry of entities: set OUTBOX_ENTITIES, e.g. myapp.search:registry")
    with admin.database.store() as store:
        chosen = select(store, admin.registry, entities=[entity], tenant=tenant, since=since, keep_old=keep_old)
        return [
            Planned(
                index=each.index,
                entities=[one.name for one in each.entities],
                documents=rows_of(store, each),
                in_place=each.in_place,
            )
            for each in chosen
        ]


def roll_back(admin: AdminContext, by: str, index: str) -> RolledBack:
    """Give readers and rows the kept old index back. Raises `ReindexFailed` if none is kept, `DestinationError`."""
    with admin.database.store() as store, audit.noted(store, by, "reindex", audit.described({"rollback": index})):
        live, refused = rolled_back(store, admin.destination, index)
    logger.warning(
        "index {index}: readers and rows have {live} again, by {by}", index=index, live=live, by=logs.safe(by)
    )
    admin.overviews.invalidate()
    return RolledBack(index=index, live=live, refused=refused)
