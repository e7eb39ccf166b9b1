"""Rows by id, document, index, tenant and age: the same words choose dead and pending rows, and all must fit."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from click.testing import CliRunner, Result

from outbox.cli import main
from outbox.settings import span_ms
from tests.support.outbox import Outbox

HOUR = 3_600_000
UUID = "123e4567-e89b-12d3-a456-426614174000"

Call = Callable[..., Result]


@pytest.fixture
def call(outbox: Outbox) -> Call:
    def run(*arguments: str, answer: str | None = None) -> Result:
        environment = {"OUTBOX_DATABASE_URL": outbox.url}
        return CliRunner().invoke(main, arguments, input=answer, env=environment)

    return run


def three(outbox: Outbox, state: str) -> list[int]:
    """A row that was written two days ago, one of a tenant, and one of another index."""
    rows = [
        outbox.index("contacts", "old", {}),
        outbox.index("contacts", "of a tenant", {}, tenant_id=UUID.replace("-", "")),
        outbox.index("deals", "old", {}),
    ]
    why = "x" if state == "dead" else None
    outbox.raw("UPDATE outbox_events SET state = :state, error_type = :why", state=state, why=why)
    outbox.raw("UPDATE outbox_events SET created_at = created_at - :age WHERE id = :id", age=48 * HOUR, id=rows[0])
    return rows


SELECTIONS: list[tuple[list[str], set[int]]] = [
    (["--id", "1"], {1}),
    (["--id", "1", "--id", "3"], {1, 3}),
    (["--document", "old"], {1, 3}),
    (["--document", "old", "--index", "deals"], {3}),
    (["--index", "contacts"], {1, 2}),
    (["--tenant", UUID], {2}),
    (["--older-than", "36h"], {1}),
    (["--older-than", "3d"], set()),
    (["--document", "old", "--older-than", "100m"], {1}),
]

COMMANDS = {"purge --yes": "pending", "dead discard --yes": "dead", "dead retry": "dead"}


@pytest.mark.parametrize(("selection", "chosen"), SELECTIONS)
@pytest.mark.parametrize("command", COMMANDS)
def test_rows_that_fit_all_that_is_given_are_chosen_and_no_other(
    outbox: Outbox, call: Call, command: str, selection: list[str], chosen: set[int]
) -> None:
    state = COMMANDS[command]
    rows = three(outbox, state)
    assert rows == [1, 2, 3]
    assert call(*command.split(), *selection).exit_code == 0
    left = {row["id"] for row in outbox.store().events() if row["state"] == state}
    assert left == {*rows} - chosen


def test_command_asks_with_the_number_that_fits(outbox: Outbox, call: Call) -> None:
    three(outbox, "pending")
    asked = call("purge", "--document", "old", "--older-than", "1h", answer="n\n")
    assert (asked.exit_code, "Remove 1 pending row for good?" in asked.stdout) == (1, True)
    outbox.raw("UPDATE outbox_events SET state = 'dead'")
    asked = call("dead", "discard", "--document", "old", answer="n\n")
    assert (asked.exit_code, "Remove 2 dead rows for good?" in asked.stdout) == (1, True)
    assert len(outbox.store().events()) == 3


def test_row_that_was_named_and_is_in_another_state_is_said_and_exits_1(outbox: Outbox, call: Call) -> None:
    rows = three(outbox, "pending")
    outbox.raw("UPDATE outbox_events SET state = 'claimed' WHERE id = :id", id=rows[1])
    purged = call("purge", "--id", str(rows[0]), "--id", str(rows[1]), "--yes")
    assert (purged.exit_code, purged.stdout) == (1, "1 row is removed\n")
    assert f"row {rows[1]} is not pending, or not of this selection" in purged.stderr
    assert call("dead", "retry", "--id", str(rows[1])).exit_code == 1


@pytest.mark.parametrize(
    ("command", "state", "moment"),
    [
        ("purge --id", "pending", "click.confirm"),
        ("dead discard", "dead", "click.confirm"),
        ("dead retry", "dead", "outbox.cli.dead.operator_name"),
    ],
)
def test_row_that_was_named_and_left_the_state_meanwhile_is_said_and_exits_1(
    outbox: Outbox, call: Call, monkeypatch: pytest.MonkeyPatch, command: str, state: str, moment: str
) -> None:
    row = three(outbox, state)[0]

    def meanwhile(*_: object, **__: object) -> str:
        outbox.raw("UPDATE outbox_events SET state = 'claimed' WHERE id = :id", id=row)
        return "ada"

    monkeypatch.setattr(moment, meanwhile)
    done = call(*command.split(), str(row))
    assert (done.exit_code, f"row {row} is not {state}, or not of this selection" in done.stderr) == (1, True)
    assert outbox.state(row) == "claimed"


def test_numbers_with_and_without_the_option_are_one_selection(outbox: Outbox, call: Call) -> None:
    three(outbox, "dead")
    assert call("dead", "discard", "1", "--id", "3", "--yes").stdout == "2 dead rows are removed\n"


@pytest.mark.parametrize("command", [("dead", "list"), ("dead", "retry", "--id"), ("show",), ("purge", "--id")])
def test_number_that_no_row_can_have_is_a_mistake_and_no_traceback(call: Call, command: tuple[str, ...]) -> None:
    found = call(*command, "9" * 20)
    assert (found.exit_code, "is not in the range 1<=x<=9223372036854775807" in found.stderr) == (2, True)


def test_tenant_of_which_there_is_nothing_is_refused(outbox: Outbox, call: Call) -> None:
    three(outbox, "pending")
    refused = call("purge", "--tenant", "acme", "--yes")
    assert (refused.exit_code, "there is no tenant 'acme'" in refused.stderr) == (1, True)
    assert outbox.counts()["pending"] == 3


@pytest.mark.parametrize("age", ["36", "h", "1w", "-1d", "1.5h", "", "1 d"])
def test_age_that_is_none_is_refused(outbox: Outbox, call: Call, age: str) -> None:
    three(outbox, "pending")
    refused = call("purge", "--older-than", age, "--yes")
    assert refused.exit_code == 2
    assert "e.g. 36h or 7d" in " ".join(refused.stderr.split())
    assert outbox.counts()["pending"] == 3


def test_units_of_an_age() -> None:
    assert [span_ms(text) for text in ("90s", "15m", "36h", "7d")] == [90_000, 15 * 60_000, 36 * HOUR, 7 * 24 * HOUR]
