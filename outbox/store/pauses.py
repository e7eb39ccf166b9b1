"""What operators have paused: the outbox, an index, a tenant, or a tenant in an index."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from outbox.documents import same_tenant, tenant_spellings
from outbox.errors import ConfigurationError, shortened
from outbox.store.models import unfinished
from outbox.store.store import Store, narrowed, of_tenants

Run = Callable[[str], Iterable[Any]]
"""`Store.run`, or `exec_driver_sql` of a connection."""

MOST_NAMED = 10


@dataclass(frozen=True, slots=True)
class Pause:
    """Rows that no relay claims until an operator resumes them: of an index, of a tenant, or of a tenant in an index.

    With neither it is of all rows.
    """

    index: str | None
    tenant: str | None
    since: int
    by: str
    reason: str

    @property
    def is_of_all(self) -> bool:
        return self.index is None and self.tenant is None

    @property
    def what(self) -> str:
        """What is paused, for people."""
        if self.tenant is None:
            return "the outbox" if self.index is None else f"index {self.index}"
        return f"tenant {self.tenant}" + ("" if self.index is None else f" in index {self.index}")

    @property
    def remedy(self) -> str:
        """The command that resumes it."""
        given = {"--index": self.index, "--tenant": self.tenant}
        options = (f" {option} {shlex.quote(value)}" for option, value in given.items() if value is not None)
        return f"outbox-relay resume{''.join(options)}"

    @property
    def tenants(self) -> tuple[str, ...]:
        """What rows that it holds may have as their tenant; anything, if that is empty."""
        return () if self.tenant is None else tenant_spellings(self.tenant)

    def holds(self, index: str, tenant: str | None) -> bool:
        """Whether a row is one of those."""
        return self.index in (None, index) and (self.tenant is None or tenant in self.tenants)


def pause(
    store: Store, reason: str, by: str, now: int, *, index: str | None = None, tenants: tuple[str, ...] = ()
) -> None:
    """Keep all relays from claiming rows: of an index, of a tenant (all its spellings), of both; or all. Rows that are
    with the destination come to their end.

    A tenant that entities spell each in its own way is one pause for each: who looks at pauses knows no entities.
    """
    with store.write(durable=True):
        if index is None and not tenants:
            store.run("INSERT INTO outbox_control (id) VALUES (1) ON CONFLICT DO NOTHING")
            store.run(
                "UPDATE outbox_control SET paused_at = :now, paused_by = :by, pause_reason = :reason",
                now=now,
                by=by,
                reason=reason,
            )
            return
        _remove(store, index, tenants)
        for tenant in {same_tenant(each): each for each in reversed(tenants or ("",))}.values():
            store.run(
                "INSERT INTO outbox_pauses (index_name, tenant_id, paused_at, paused_by, reason)"
                " VALUES (:index, :tenant, :now, :by, :reason)",
                index=index or "",
                tenant=tenant,
                now=now,
                by=by,
                reason=reason,
            )


def resume(store: Store, *, index: str | None = None, tenants: tuple[str, ...] = ()) -> bool:
    """Let relays claim again what was paused by the same selection. False if it was not paused."""
    with store.write(durable=True):
        if index is None and not tenants:
            return bool(
                store.run(
                    "UPDATE outbox_control SET paused_at = NULL, paused_by = NULL, pause_reason = NULL"
                    " WHERE paused_at IS NOT NULL"
                ).rowcount
            )
        return _remove(store, index, tenants)


def _remove(store: Store, index: str | None, tenants: tuple[str, ...]) -> bool:
    mine, spelled = of_tenants(tenants or ("",))
    return bool(
        store.run(
            f"DELETE FROM outbox_pauses WHERE index_name = :index AND {mine}", {"index": index or "", **spelled}
        ).rowcount
    )


def current(run: Run) -> tuple[Pause, ...]:
    """Everything that is paused, the pause of all rows first. Takes no lock."""
    found = run(
        "SELECT '' AS index_name, '' AS tenant_id, paused_at, coalesce(paused_by, '?'), coalesce(pause_reason, '?')"
        " FROM outbox_control WHERE paused_at IS NOT NULL"
        " UNION ALL SELECT index_name, tenant_id, paused_at, paused_by, reason FROM outbox_pauses"
        " ORDER BY index_name, tenant_id"
    )
    return tuple(Pause(row[0] or None, row[1] or None, row[2], row[3], row[4]) for row in found)


def waiting(store: Store, paused: Pause) -> int:
    """How many unfinished rows a pause holds. Looks at each row that waits."""
    condition, given = narrowed(index_name=paused.index)
    mine, spelled = of_tenants(paused.tenants)
    return int(
        store.run(
            f"SELECT count(*) FROM outbox_events {store.dialect.indexed('held')} WHERE ({unfinished()})"
            f" AND {condition} AND {mine}",
            {**given, **spelled},
        ).scalar_one()
    )


def require_index(store: Store, index: str) -> None:
    """Raises `ConfigurationError` if no row waits for the index and none was sent to it: it may be misspelt."""
    known = store.run(
        "SELECT EXISTS (SELECT 1 FROM outbox_indexes WHERE index_name = :index)"
        f" OR EXISTS (SELECT 1 FROM outbox_events {store.dialect.indexed('held')}"
        f" WHERE ({unfinished()}) AND index_name = :index)",
        index=index,
    ).scalar_one()
    if not known:
        names = sorted(store.targets())
        more = ", …" if len(names) > MOST_NAMED else ""
        there = f"there are {', '.join(names[:MOST_NAMED])}{more}" if names else "there is none so far"
        raise ConfigurationError(f"there is no index {shortened(index)}; {there}")
