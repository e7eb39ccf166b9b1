"""What operators look at of one index: its rows, where they go, and what became of them by time.

None but `names` walks through finished rows.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from outbox.store import models, shown
from outbox.store.figures import SUMS, Backlog, Statistic
from outbox.store.store import Store


class Waiting(NamedTuple):
    """Rows of an index that want something. `oldest_ms`: how long the oldest unfinished one waits; None: none does."""

    unfinished: int
    dead: int
    oldest_ms: int | None


@dataclass(frozen=True, slots=True)
class Target:
    """A physical index that rows go to. `refused`: documents that one kept for a rollback did not take."""

    name: str
    role: str
    since: int
    refused: int


def names(store: Store) -> set[str]:
    """Every index that rows name, also those that no relay has looked up so far (or that a restore forgot)."""
    found = store.run("SELECT index_name FROM outbox_indexes UNION SELECT index_name FROM outbox_events")
    return {row[0] for row in found}


def waiting(store: Store, now: int) -> dict[str, Waiting]:
    """Of every index that rows go to, wait for or died of. Looks at each row that waits or is dead."""
    held, dead = store.dialect.indexed("held"), store.dialect.indexed("dead")
    found = store.run(
        f"SELECT {store.dialect.as_bytes('counted.index_name')}, waits, died, CAST(created_at AS BIGINT) FROM ("
        "SELECT index_name, CAST(sum(unfinished) AS BIGINT) AS waits, CAST(sum(dead) AS BIGINT) AS died,"
        " min(oldest) AS oldest FROM ("
        "SELECT index_name, count(*) AS unfinished, 0 AS dead, min(id) AS oldest"
        f" FROM outbox_events {held} WHERE {models.unfinished()} GROUP BY index_name"
        " UNION ALL SELECT index_name, 0, count(*), NULL"
        f" FROM outbox_events {dead} WHERE state = 'dead' GROUP BY index_name"
        " UNION ALL SELECT index_name, 0, 0, NULL FROM outbox_indexes WHERE role = 'live'"
        ") AS parts GROUP BY index_name) AS counted LEFT JOIN outbox_events AS e ON e.id = counted.oldest"
    )
    return {
        shown.text(index): Waiting(waits, died, None if oldest is None else max(0, now - oldest))
        for index, waits, died, oldest in found
    }


def backlog(store: Store, index: str, now: int) -> Backlog:
    """What waits of one index."""
    indexed = store.dialect.indexed
    unfinished, first, fresh, claimed, dead = store.run(
        "SELECT held.*,"
        f" (SELECT count(*) FROM outbox_events {indexed('fresh')} WHERE {models.fresh()} AND index_name = :index),"
        f" (SELECT count(*) FROM outbox_events {indexed('leases')} WHERE state = 'claimed' AND index_name = :index),"
        f" (SELECT count(*) FROM outbox_events {indexed('dead')} WHERE state = 'dead' AND index_name = :index)"
        f" FROM (SELECT count(*), min(id) FROM outbox_events {indexed('held')}"
        f" WHERE ({models.unfinished()}) AND index_name = :index) AS held",
        index=index,
    ).one()
    written = store.run(
        "SELECT CAST(created_at AS BIGINT) FROM outbox_events WHERE id = :id", id=first
    ).scalar_one_or_none()
    return Backlog(
        fresh, unfinished - fresh - claimed, claimed, dead, None if written is None else max(0, now - written)
    )


def targets(store: Store, index: str) -> list[Target]:
    """The physical indexes that rows of an index go to, the live one first."""
    found = store.run(
        "SELECT physical_index, role, created_at, refused FROM outbox_indexes WHERE index_name = :index"
        " ORDER BY role <> 'live', created_at, physical_index",
        index=index,
    )
    return [Target(*row) for row in found]


def statistics(store: Store, since: int, index: str) -> list[Statistic]:
    """As `figures.statistics`, of one index, whatever the entity and the action."""
    # From one minute that is there to the next, each looked up by the key: between them may be many rows of others.
    found = store.run(
        "WITH RECURSIVE there(minute) AS (SELECT min(minute) FROM outbox_stats WHERE minute >= :since"
        " UNION ALL SELECT (SELECT min(s.minute) FROM outbox_stats AS s WHERE s.minute > there.minute)"
        " FROM there WHERE there.minute IS NOT NULL)"
        f" SELECT s.minute, {SUMS} FROM there CROSS JOIN outbox_stats AS s"
        " WHERE s.minute = there.minute AND s.index_name = :index GROUP BY s.minute",
        since=since,
        index=index,
    )
    return [Statistic(row[0], index, "", "", tuple(row[1:])) for row in found]


def sharing(targets: Mapping[str, str]) -> dict[str, list[str]]:
    """The indexes whose rows go to a physical one together, each with the others: a mistake, for which see
    `outbox-relay check`. `targets`: as `Store.targets` has them."""
    together: dict[str, list[str]] = defaultdict(list)
    for name, target in sorted(targets.items()):
        together[target].append(name)
    return {
        name: [other for other in together[target] if other != name]
        for name, target in targets.items()
        if len(together[target]) > 1
    }


def kept(store: Store) -> list[tuple[str, str, int]]:
    """(index, physical index, documents that it refused) of all that a rebuild has kept for a rollback."""
    found = store.run(
        "SELECT index_name, physical_index, refused FROM outbox_indexes WHERE role = 'old' ORDER BY index_name"
    )
    return [(row[0], row[1], row[2]) for row in found]
