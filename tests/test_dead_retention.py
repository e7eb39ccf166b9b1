"""Dead rows that nobody dealt with go after their time, if an operator has set one, and the log says how many."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from loguru import logger
from pydantic import ValidationError
from sqlalchemy import Engine

from outbox.maintenance.pruner import CHUNK, prune_dead
from outbox.maintenance.scheduler import Maintenance
from outbox.store.models import now_ms
from tests.support.outbox import Outbox, settings

DAY = 86_400_000


@pytest.fixture
def said() -> Iterator[list[str]]:
    lines: list[str] = []
    sink = logger.add(lines.append, format="{level} {message}")
    yield lines
    logger.remove(sink)


def dead(outbox: Outbox, days: float, document: str = "c1") -> int:
    """A row that was written and delivered a year ago, and died so many days ago."""
    row = outbox.index("contacts", document, {})
    outbox.raw(
        "UPDATE outbox_events SET state = 'dead', deliveries = 4, error_type = 'x', error = 'x',"
        " created_at = :written, finished_at = :died WHERE id = :id",
        written=now_ms() - 365 * DAY,
        died=now_ms() - int(days * DAY),
        id=row,
    )
    return row


def ids(outbox: Outbox) -> list[int]:
    return [row["id"] for row in outbox.store().events()]


def test_dead_rows_go_so_long_after_they_died_and_are_counted_in_the_log(
    outbox: Outbox, engine: Engine, said: list[str]
) -> None:
    old, older, young = dead(outbox, 91), dead(outbox, 200, "c2"), dead(outbox, 89, "c3")
    waits = outbox.index("contacts", "c4", {})
    outbox.raw("UPDATE outbox_events SET version = 500 + id")
    outbox.raw("UPDATE outbox_events SET created_at = 1 WHERE id = :id", id=waits)
    Maintenance(engine, 1, settings(dead_retention="90d"), list).prune(outbox.store())
    assert ids(outbox) == [young, waits]
    assert said == ["WARNING 2 dead rows removed for good: they died more than 90d ago (OUTBOX_DEAD_RETENTION)\n"]
    assert outbox.store().control().highest_pruned_version == 500 + max(old, older)
    assert outbox.store().run("SELECT count(*) FROM outbox_documents").scalar_one() == 2


def test_dead_rows_stay_for_ever_by_default(outbox: Outbox, engine: Engine, said: list[str]) -> None:
    row = dead(outbox, 3_000)
    Maintenance(engine, 1, settings(), list).prune(outbox.store())
    assert (ids(outbox), said) == ([row], [])


def test_finished_row_that_a_dead_one_kept_goes_with_it(outbox: Outbox, engine: Engine) -> None:
    dead(outbox, 91)
    later = outbox.index("contacts", "c1", {})
    outbox.raw("UPDATE outbox_events SET state = 'done', finished_at = 1 WHERE id = :id", id=later)
    Maintenance(engine, 1, settings(dead_retention="90d"), list).prune(outbox.store())
    assert ids(outbox) == []


def test_row_that_is_retried_between_the_look_and_its_turn_stays(outbox: Outbox) -> None:
    rows = [dead(outbox, 91, f"c{number}") for number in range(CHUNK + 1)]

    def retried(_: float) -> None:
        outbox.raw("UPDATE outbox_events SET state = 'pending', finished_at = NULL WHERE state = 'dead'")

    assert prune_dead(outbox.store(), now_ms() - 90 * DAY, "90d", retried) == len(rows) - len(ids(outbox))
    assert {outbox.state(row) for row in ids(outbox)} == {"pending"}


@pytest.mark.parametrize("value", ["0d", "90", "a year", "-1d"])
def test_time_that_is_none_or_would_keep_nothing_is_refused(value: str) -> None:
    with pytest.raises(ValidationError):
        settings(dead_retention=value)
