"""Gives back the rows of relays that were killed or got stuck, and takes such relays off the list."""

from __future__ import annotations

from typing import Final

from loguru import logger

from outbox import logs
from outbox.settings import LONGEST_LEASE_S, Settings
from outbox.store import upkeep
from outbox.store.store import Store

NO_LEASE_MS: Final = 1_000 * (LONGEST_LEASE_S + 60)
"""A lease that ends later than this was written before the clock was set back. With what a claim may wait for the
write lock."""


def reap(store: Store, relay: int, settings: Settings, now: int) -> int:
    """Give back what dead relays held, and rows whose lease has expired. That relay takes itself for alive.

    Returns how many rows died: the relays that took one alone were killed.
    """
    others = [other for other in store.relays() if other["id"] != relay]
    dead = store.presence.dead("relay", [other["id"] for other in others])
    reaped = upkeep.reap(store, now, NO_LEASE_MS, dead_relays=dead, lone_after=settings.lone_after)
    store.presence.remove_locks("relay", dead)  # not before: the database may be locked
    if reaped.dead:
        logger.critical(
            "{found} dead: relays that took one alone were killed; see 'outbox-relay dead list --error-type poison'",
            found=logs.rows(reaped.dead, "is", "are"),
            rows=reaped.dead,
        )
    if reaped.given_back:
        logger.warning(
            "{found} given back: a relay was killed, or did not finish in time",
            found=logs.rows(reaped.given_back, "is", "are"),
            rows=reaped.given_back,
        )
    silent = {other["id"] for other in others if other["heartbeat_at"] < now - settings.silent_ms}
    # One that is only stopped would not be listed again when it continues, and its death would be noticed late.
    store.deregister_relays([*dead, *silent.difference(dead, store.presence.live("relay", silent))])
    return reaped.dead
