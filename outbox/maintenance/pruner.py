"""Removes finished and old dead rows, and old statistics, a few at a time: nothing waits long for the write lock."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from loguru import logger

from outbox import logs
from outbox.settings import Settings, span_ms
from outbox.store import audit, upkeep
from outbox.store.store import Store, pause_after
from outbox.store.upkeep import Finished

CHUNK = 1_000
"""Rows that are looked at in one go."""

MINUTES_MS: Final = 3 * upkeep.HOUR_MS
"""For how long statistics are kept by minute; older ones are summed up by hour."""

STATS_PAUSE_S: Final = 0.01


def prune_all(store: Store, settings: Settings, now: int, pause: Callable[[float], object]) -> None:
    """Remove what the settings do not keep: dead rows, finished ones, then statistics and the audit. `pause` as for
    `prune`."""
    if settings.dead_retention is not None:
        prune_dead(store, now - span_ms(settings.dead_retention), settings.dead_retention, pause)
    prune(store, now - int(settings.retention_hours * 3_600_000), pause)
    while upkeep.prune_stats(store, now - int(settings.stats_retention_days * 86_400_000)):
        if pause(STATS_PAUSE_S):
            return
    audit.prune(store, now - int(settings.stats_retention_days * 86_400_000))
    while upkeep.compact_stats(store, now - MINUTES_MS):
        if pause(STATS_PAUSE_S):
            return


def prune_dead(store: Store, before: int, kept: str, pause: Callable[[float], object] = time.sleep) -> int:
    """Remove the rows that died before that instant. Returns their number. `kept`: for how long, for the log; `pause`
    as for `prune`."""
    removed = 0
    for step in store.in_steps(upkeep.died(store, before)):
        began = time.monotonic()
        removed += upkeep.remove_died(store, step, before)
        if pause(pause_after(began)):
            break
    if removed:
        logger.warning(
            "{counted} removed for good: they died more than {kept} ago (OUTBOX_DEAD_RETENTION)",
            counted=logs.rows(removed, kind="dead"),
            rows=removed,
            kept=kept,
        )
    return removed


def prune(store: Store, before: int, pause: Callable[[float], object] = time.sleep) -> int:
    """Remove the rows that were done before that instant. Returns their number.

    While a row of a document is dead, two of the later ones stay: the newest, and the newest that was no partial
    update. They tell what a retry of the dead row would come too late for.

    `pause` is called between two transactions with the seconds to wait, and ends it all by returning something true.
    """
    removed, after = 0, (-1, -1)
    kept: dict[tuple[str, str], set[Finished]] = {}
    while found := upkeep.finished(store, before, after, CHUNK):
        after = (found[-1].finished_at, found[-1].id)
        removable = [row.id for row in found if not row.behind_dead]
        for row in found:
            if row.behind_dead:
                rows = kept.get(row.document, set()) | {row}
                kept[row.document] = {max(rows)} | set(sorted(each for each in rows if each.whole)[-1:])
                removable += [each.id for each in rows - kept[row.document]]
        for step in store.in_steps(removable):
            began = time.monotonic()
            removed += upkeep.remove_finished(store, step)
            if pause(pause_after(began)):
                return removed
    return removed
