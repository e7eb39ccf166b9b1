"""A relay with a ceiling takes no more rows a second than that, and holds no more than it sends."""

from __future__ import annotations

from pathlib import Path

from outbox.destinations.embedded.destination import EmbeddedDestination
from outbox.relay.rate import Ceiling
from outbox.store.models import now_ms
from tests.support.outbox import Outbox


def test_rows_of_a_second_are_taken_at_once_and_then_as_many_as_the_time_gives(outbox: Outbox, tmp_path: Path) -> None:
    outbox.index_many("contacts", [(f"c{n}", {}) for n in range(200)])
    relay = outbox.relay(EmbeddedDestination(tmp_path / "search.db"), rate=50)
    now = now_ms()

    def done(after_ms: int) -> int:
        while relay.run_once(now + after_ms):
            pass
        assert outbox.counts()["claimed"] == 0  # nothing is held back in hand
        return outbox.counts()["done"]

    assert [done(0), done(0), done(500), done(1_500), done(60_000)] == [50, 50, 75, 125, 175]


def test_process_with_a_ceiling_goes_on_by_itself_until_all_is_delivered(outbox: Outbox, tmp_path: Path) -> None:
    outbox.index_many("contacts", [(f"c{n}", {}) for n in range(120)])
    relay = outbox.relay(EmbeddedDestination(tmp_path / "search.db"), rate=100, poll_interval=60)
    assert relay.run(drain=True).done == 120


def test_bucket_that_is_empty_gives_nothing_until_a_request_is_worth_it() -> None:
    ceiling = Ceiling(100)
    ceiling.took(ceiling.room(1_000))
    assert [ceiling.room(1_000 + ms) for ms in (0, 50, 90, 100)] == [0, 0, 0, 10]
    assert ceiling.room(500) == 10  # the clock was set back
    assert ceiling.room(100_000) == 100


def test_ceiling_below_one_row_a_second_lets_one_go_at_a_time() -> None:
    ceiling = Ceiling(0.5)
    ceiling.took(ceiling.room(1_000))
    assert [ceiling.room(ms) for ms in (1_000, 2_900, 3_000)] == [0, 0, 1]
