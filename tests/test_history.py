"""What has become of a row, step by step: nothing is left out, and no operator is named who was not it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from click.testing import CliRunner

from outbox.cli import main
from outbox.store import audit, failures, history, operators
from outbox.store.models import State, now_ms
from outbox.store.store import Store
from tests.support.outbox import Outbox


@pytest.fixture
def store(outbox: Outbox) -> Store:
    return outbox.store()


def died(outbox: Outbox, document: str, at: int, tenant: str | None = None) -> int:
    row = outbox.index("contacts", document, {}, tenant_id=tenant)
    again(outbox, row, at)
    return row


def again(outbox: Outbox, row: int, at: int) -> None:
    """An attempt of a row fails, and it dies of it."""
    store = outbox.store()
    with store.write(durable=False):
        failures.record(store, "e.id = :row", {"row": row}, became=State.DEAD, error_type="refused", error="no", now=at)
    outbox.raw(
        "UPDATE outbox_events SET state = 'dead', available_at = NULL, finished_at = :at, error_type = 'refused',"
        " error = 'no' WHERE id = :row", at=at, row=row,
    )  # fmt: skip


def steps(store: Store, row: int) -> list[tuple[str, str]]:
    found = store.event(row)
    assert found is not None
    return [(each.step, each.text) for each in history.of_row(store, found)]


def retried(store: Store, rows: list[int], by: str, **told: Any) -> None:
    with audit.noted(store, by, "dead retry", audit.described(told)):
        operators.retry_dead(store, rows, now_ms())


def test_selection_of_many_rows_names_each_of_them_and_no_other(outbox: Outbox, store: Store) -> None:
    ids = range(100_001, 101_001)
    with audit.noted(store, "ada", "dead discard", audit.described({"ids": [*ids]})):
        pass
    named = [history.removal_of(store, each) for each in (*ids, 1, 10, 100, 1_002, 10_028, 100_000, 101_001)]
    assert [each is not None for each in named] == [True] * len(ids) + [False] * 7
    line = CliRunner().invoke(main, ["audit", "--database-url", outbox.url]).output
    assert len(line) < 400 and line.endswith("…\n")


@pytest.mark.parametrize(
    "told",
    [
        {"ids": [1]},
        {"index": "contacts", "tenant": "t 1"},
        {},
        {"error_type": "refused", "error_field": "(none)", "died_by": 9},
    ],
)
def test_retry_is_put_down_to_the_operator_whose_selection_had_the_row(
    outbox: Outbox, store: Store, told: dict[str, Any]
) -> None:
    row = died(outbox, "c1", now_ms(), "t 1")
    for other in ({"ids": [11]}, {"index": "deals"}, {"index": "contacts", "document": "c2"}, {"error_type": "other"}):
        retried(store, [], "eve", **other)
    retried(store, [row], "ada", **told)
    retried(store, [], "grace", **told)  # too late: it is not dead any more
    again(outbox, row, now_ms() + 1)
    assert steps(store, row) == [
        ("written", "written"),
        ("failed", "attempt 1 failed: the row died"),
        ("retried", "retried by ada"),
        ("failed", "attempt 2 failed: the row died"),
    ]


def test_retry_that_the_audit_does_not_know_is_said_to_be_nobodys(outbox: Outbox, store: Store) -> None:
    row = died(outbox, "c1", now_ms())
    operators.retry_dead(store, [row], now_ms())
    assert steps(store, row)[2:] == [
        ("retried", "retried; the audit does not say by whom"),
        ("waiting", "waits for its next attempt"),
    ]


def test_row_that_waits_says_what_for(outbox: Outbox, store: Store) -> None:
    first, second = outbox.index("contacts", "c1", {}), outbox.index("contacts", "c1", {})
    assert [steps(store, row)[-1] for row in (first, second)] == [
        ("waiting", "waits for a relay"),
        ("waiting", f"waits behind row {first} of the same document"),
    ]
    relay = store.register_relay("web1", 4711, "1.0", now_ms())
    outbox.raw(
        "UPDATE outbox_events SET state = 'claimed', claimed_by = :relay WHERE id = :row", relay=relay, row=first
    )
    assert steps(store, first)[-1] == ("claimed", f"claimed: relay {relay} (pid 4711 on web1) has it")


def test_error_that_was_no_attempt_stands_with_what_the_row_is_now(outbox: Outbox, store: Store) -> None:
    row = outbox.index("contacts", "c1", {})
    outbox.raw("UPDATE outbox_events SET available_at = 1, error_type = 'unanswered', error = 'Connection timeout'")
    found = store.event(row)
    assert found is not None
    now = history.of_row(store, found)[-1]
    assert (now.step, now.until, now.error) == ("waiting", 1, "Connection timeout")


def test_row_that_died_before_attempts_were_noted_says_why(outbox: Outbox, store: Store) -> None:
    row = outbox.index("contacts", "c1", {})
    outbox.raw("UPDATE outbox_events SET state = 'dead', finished_at = 5, error_type = 'refused', error = 'no'")
    found = store.event(row)
    assert found is not None
    now = history.of_row(store, found)[-1]
    assert (now.step, now.at, now.text, now.error) == ("dead", 5, "dead as refused", "no")


def test_show_prints_the_history_and_names_who_removed_a_row(outbox: Outbox, store: Store) -> None:
    row = died(outbox, "c1", 1_000)
    call = ["--database-url", outbox.url]
    said = CliRunner().invoke(main, ["show", str(row), *call]).stdout
    assert "1970-01-01T00:00:01.000Z  attempt 1 failed: the row died: refused: no\n" in said
    facts = json.loads(CliRunner().invoke(main, ["show", str(row), "--json", *call]).stdout)
    assert [(each["step"], each["error"]) for each in facts["history"]] == [("written", None), ("failed", "no")]
    with audit.noted(store, "ada", "dead discard", audit.described({"ids": [row]})):
        operators.discard_dead(store, [row])
    gone = CliRunner().invoke(main, ["dead", "show", str(row), *call])
    assert gone.exit_code == 1
    assert f"row {row} does not exist: discarded by ada at " in gone.stderr
    assert "removed after OUTBOX_RETENTION_HOURS" in CliRunner().invoke(main, ["show", "999", *call]).stderr
