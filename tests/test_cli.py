"""What the commands print, ask and log; without Elasticsearch."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import pytest
from click.testing import CliRunner, Result
from loguru import logger

from outbox import logs
from outbox.cli import main
from outbox.models import now_ms
from tests.support.outbox import Outbox

Call = Callable[..., Result]


@pytest.fixture
def call(outbox: Outbox) -> Iterator[Call]:
    """Runs a command on the database of the test."""

    def run(*arguments: str, answer: str | None = None, **environment: str) -> Result:
        environment["OUTBOX_DATABASE_URL"] = f"sqlite:///{outbox.engine.url.database}"
        return CliRunner().invoke(main, arguments, input=answer, env=environment)

    yield run
    logger.remove()  # a command may have set up logs on a stream that is closed by now


def die(outbox: Outbox, event_id: int, error: str = "failed to parse field [n]") -> None:
    outbox.raw(
        "UPDATE outbox_events SET state = 'dead', error_type = 'document_parsing_exception', error = :error,"
        " finished_at = :now WHERE id = :id",
        id=event_id, error=error, now=now_ms(),
    )  # fmt: skip


# -- words and tables ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "says"), [(0, "0 rows wait"), (1, "1 row waits"), (2, "2 rows wait"), (1_204, "1,204 rows wait")]
)
def test_number_of_rows_reads_as_people_say_it(number: int, says: str) -> None:
    assert logs.rows(number, "waits", "wait") == says


def test_dead_list_fits_80_columns_and_forges_no_line(outbox: Outbox, call: Call) -> None:
    long = outbox.index("contacts", "x" * 300, {})
    die(outbox, long, "failed to parse field [age] of type [long]; " * 40)
    die(outbox, outbox.put_raw("deals", "d1\n7  index forged/row\x1b[2J", "{}"), "[red]not markup[/red]")
    text = call("dead", "list").stdout
    assert max(map(len, text.splitlines())) <= 80
    assert text.count("x") >= 300  # folded, not cut
    assert "\x1b" not in text
    assert not [line for line in text.splitlines() if line.startswith("7  index")]
    assert "[red]not markup[/red]" in " ".join(text.split())
    assert text.splitlines()[-1] == "2 dead rows"


def test_dead_list_says_when_there_are_more(outbox: Outbox, call: Call) -> None:
    for row in outbox.index_many("contacts", [(f"c{n}", {}) for n in range(3)]):
        die(outbox, row)
    assert call("dead", "list", "--limit", "2").stdout.splitlines()[-1] == "the first 2 dead rows; --limit shows more"
    assert len(json.loads(call("dead", "list", "--limit", "2", "--json").stdout)) == 2
    assert call("dead", "list", "--index", "deals").stdout == "no dead rows\n"


@pytest.mark.parametrize(("number", "row", "are", "were"), [(1, "row", "is", "was"), (2, "rows", "are", "were")])
def test_dead_commands_agree_with_their_numbers(
    outbox: Outbox, call: Call, number: int, row: str, are: str, were: str
) -> None:
    rows = outbox.index_many("contacts", [(f"c{n}", {}) for n in range(number)])
    for each in rows:
        die(outbox, each)
    assert call("dead", "list").stdout.endswith(f"\n{number} dead {row}\n")
    retried = call("dead", "retry", "--all").stdout
    assert retried == f"{number} {row} {are} pending again, 0 were superseded by later rows\n"
    for each in rows:
        die(outbox, each)
        outbox.raw(
            "INSERT INTO outbox_events (action, index_name, document_id, state, outcome)"
            " SELECT action, index_name, document_id, 'done', 'applied' FROM outbox_events WHERE id = :id",
            id=each,
        )
    retried = call("dead", "retry", "--all").stdout
    assert retried == f"0 rows are pending again, {number} {were} superseded by later rows\n"
    for each in rows:
        die(outbox, each)
    assert f"Remove {number} dead {row} for good?" in call("dead", "discard", "--all", answer="n\n").stdout
    assert call("dead", "discard", "--all", "--yes").stdout == f"{number} dead {row} {are} removed\n"


def test_status_and_check_agree_with_their_numbers(outbox: Outbox, call: Call) -> None:
    outbox.index("contacts", "c1", {})
    assert "           1 waiting, the oldest for " in call("status").stdout
    assert "queue: 1 row waits, the oldest for " in call("check").stdout


def test_show_forges_no_line(outbox: Outbox, call: Call) -> None:
    row = outbox.put_raw("contacts", "c1\nforged", "{}\n\x1b[2J")
    text = call("show", str(row)).stdout
    assert "\x1b" not in text
    assert not [line for line in text.splitlines() if line.startswith("forged")]
