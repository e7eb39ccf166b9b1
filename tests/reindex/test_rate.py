"""A reindex is no faster than it was told to be."""

from __future__ import annotations

import pytest

from outbox.reindex.writer import Pace, Portion
from outbox.store.models import now_ms
from tests.reindex.world import World


def test_rate_is_kept(world: World) -> None:
    world.filled(20)
    began = now_ms()
    world.rebuild(rate=20.0)
    assert now_ms() - began > 700
    world.assert_in_step()


def test_rate_makes_nothing_up_after_an_outage() -> None:
    pace = Pace(100.0)
    assert [pace.turn(20, 0.0), pace.turn(20, 0.0), pace.turn(10, 0.1)] == pytest.approx([0, 0.2, 0.4])
    assert [pace.turn(20, 60.0) for _ in range(4)] == pytest.approx([60, 60.2, 60.4, 60.6])


def test_so_many_rows_are_read_as_take_a_second() -> None:
    portion, read = Portion(), []
    for seconds_each in (0.000_01, 0.000_01, 0.03, 0.000_01, 5.0, 5.0):
        read.append(portion.rows)
        portion.took(portion.rows, portion.rows * seconds_each)
    assert [*read, portion.rows] == [20, 200, 2_000, 33, 330, 1, 1]
