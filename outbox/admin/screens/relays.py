"""The relays: what each does now, how much of its time the database's lock takes, and what to do about a lost one."""

from __future__ import annotations

from datetime import datetime
from typing import Final, Literal

from pydantic import Field

from outbox.admin.context import AdminContext
from outbox.admin.shapes import Overview, Relay
from outbox.store import figures, jobs
from outbox.store.figures import InHand
from outbox.store.shown import moment

Doing = Literal["delivers", "idle", "waits", "paused", "hangs", "killed", "silent"]

NOTHING: Final = InHand(0, "", 0, 0)


class RelayNow(Relay):
    """A relay process, and what it does."""

    doing: Doing = Field(
        description="waits: for the destination; hangs: it runs, and says nothing; killed: its process is gone; "
        "silent: nothing is known of its process"
    )
    rows: int = Field(description="that it has claimed and not settled")
    rows_of: str | None = Field(description="an index of them")
    indexes: int = Field(description="how many indexes they are of")
    lease_until: datetime | None = Field(description="when the last of them is given back unless it settles them")
    reindexes: list[int] = Field(description="jobs that its process works on")
    up_seconds: float = Field(description="since it started")
    lock_held_share: float | None = Field(description="part of that time in which it held the write lock")
    lock_waited_share: float | None = Field(description="part of that time in which it waited for the write lock")
    remedy: str | None = Field(description="what to do; null: it is as it should be")


def relays(admin: AdminContext) -> list[RelayNow]:
    """All that are listed, lost ones first."""
    overview = admin.overviews.newest()
    numbers = [each.id for each in overview.relays]
    with admin.database.store() as store:
        in_hand = figures.in_hand(store)
        holders = {job.id: job.lease_holder for job in jobs.open_jobs(store)}
        killed = set(store.presence.dead("relay", numbers))
        alive = set(store.presence.live("relay", numbers))
    found = []
    for each in overview.relays:
        own = in_hand.get(each.id, NOTHING)
        lost: Doing | None = None
        if each.id in killed:
            lost = "killed"
        elif not each.running:
            lost = "hangs" if each.id in alive else "silent"
        work = [job for job, holder in holders.items() if holder == f"{each.host}, pid {each.pid}"]
        found.append(_now(overview, each, own, lost, work))
    return sorted(found, key=lambda relay: (relay.remedy is None, relay.id))


def _now(overview: Overview, relay: Relay, own: InHand, lost: Doing | None, reindexes: list[int]) -> RelayNow:
    up = max(0.0, (overview.as_of - relay.started_at).total_seconds() - relay.silent_seconds)
    return RelayNow(
        **relay.model_dump(exclude={"running"}),
        running=relay.running and not lost,
        doing=lost or _doing(overview, relay, own),
        rows=own.rows,
        rows_of=own.one_index or None,
        indexes=own.indexes,
        lease_until=moment(own.lease_until) if own.lease_until else None,
        reindexes=reindexes,
        up_seconds=up,
        lock_held_share=min(1.0, relay.lock.held_seconds / up) if up else None,
        lock_waited_share=min(1.0, relay.lock.waited_seconds / up) if up else None,
        remedy=_remedy(relay, lost),
    )


def _doing(overview: Overview, relay: Relay, own: InHand) -> Doing:
    if any(breaker.index is None for breaker in relay.breakers):
        return "waits"
    if own.rows:
        return "delivers"
    return "paused" if overview.paused is not None else "idle"


def _remedy(relay: Relay, lost: Doing | None) -> str | None:
    at = f"process {relay.pid} on {relay.host}"
    return {
        "killed": f"{at} was killed: other relays deliver its rows; start another one: outbox-relay run",
        "hangs": f"{at} is there and says nothing: see what it waits for, else kill it; its rows come back then",
        "silent": f"if {at} is gone, start another one: outbox-relay run; it is off the list then, its rows come back",
    }.get(lost or "")
