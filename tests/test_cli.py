"""What the commands print, ask and log; without Elasticsearch."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from outbox import logs
from outbox.cli import main
from outbox.store.models import now_ms
from tests.support import LIMIT_S
from tests.support.outbox import Outbox

Call = Callable[..., Result]


@pytest.fixture
def call(outbox: Outbox) -> Call:
    """Runs a command on the database of the test."""

    def run(*arguments: str, answer: str | None = None, **environment: str) -> Result:
        environment["OUTBOX_DATABASE_URL"] = outbox.url
        return CliRunner().invoke(main, arguments, input=answer, env=environment)

    return run


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


def test_relay_that_gives_no_sign_of_life_does_not_pass_for_one_that_runs(outbox: Outbox, call: Call) -> None:
    outbox.store().register_relay("a host\nforged", 1, "0.1.0", now_ms() - 40_000)  # of the 30 s that six signs take
    text = call("status").stdout
    assert re.search(r"relay 1 on a host\\nforged, pid 1, last sign of life [45]\d s ago: killed, or hangs\n", text)
    assert "no relay runs  → outbox-relay run" in text
    outbox.store().register_relay("host", 2, "0.1.0", now_ms())
    text = call("status").stdout
    assert re.search(r"relay 2 on host, pid 2, last sign of life \d+ s ago\n", text)
    assert "no relay runs" not in text
    assert [relay["running"] for relay in json.loads(call("status", "--json").stdout)["relays"]] == [False, True]


@pytest.mark.parametrize("command", ["retry", "discard"])
def test_row_that_is_named_and_not_dead_is_named_in_the_answer(outbox: Outbox, call: Call, command: str) -> None:
    fresh, dead = outbox.index("contacts", "c1", {}), outbox.index("contacts", "c2", {})
    die(outbox, dead)
    yes = ["--yes"] if command == "discard" else []
    result = call("dead", command, str(fresh), str(dead), "999", *yes)
    assert (result.exit_code, result.stdout[:5]) == (1, "1 row" if command == "retry" else "1 dea")
    named = [line for line in result.stderr.splitlines() if "is not dead" in line]
    assert named == [
        f"row {row} is not dead, or not of this selection: see 'outbox-relay show {row}'" for row in (fresh, 999)
    ]
    assert outbox.state(fresh) == "pending"


def test_pause_says_why_and_forges_no_line(call: Call) -> None:
    assert call("pause", "--reason", " ").exit_code == 2
    assert call("resume").stdout == "was not paused\n"
    call("pause", "--reason", "upgrade\nok    forged\x1b[2J")
    drained = call("run", "--drain", OUTBOX_ELASTICSEARCH_URL="http://127.0.0.1:9")
    assert (drained.exit_code, drained.stderr.count("\n")) == (2, 1)
    assert "the outbox is paused (upgrade\\nok" in drained.stderr
    for looked in (call("status"), call("check")):
        assert "upgrade\\nok    forged\\x1b[2J" in looked.stdout


@pytest.mark.parametrize(("no_color", "coloured"), [("", True), ("1", False)])
def test_terminal_without_colours_gets_none(outbox: Outbox, no_color: str, coloured: bool) -> None:
    given = {"OUTBOX_DATABASE_URL": outbox.url, "NO_COLOR": no_color}
    assert ("\x1b[" in CliRunner().invoke(main, ["check"], env=given, color=True).stdout) == coloured


def test_error_is_one_line_whatever_is_in_it(call: Call, tmp_path: Path) -> None:
    (tmp_path / "broken_models.py").write_text('raise ValueError("one\\ntwo")')
    result = call("verify", OUTBOX_ENTITIES="broken_models:registry")
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert "ValueError: one\\ntwo" in result.stderr


def test_show_forges_no_line(outbox: Outbox, call: Call) -> None:
    row = outbox.put_raw("contacts", "c1\nforged", "{}\n\x1b[2J")
    text = call("show", str(row)).stdout
    assert "\x1b" not in text
    assert not [line for line in text.splitlines() if line.startswith("forged")]


# -- purge and discard: asked with the right number, and logged -------------------------------------------------------


def test_purge_asks_with_the_number_that_it_will_remove(outbox: Outbox, call: Call) -> None:
    outbox.index_many("contacts", [("c1", {}), ("c2", {})])
    outbox.index("deals", "d1", {})
    assert "Remove 1 pending row of index deals for good?" in call("purge", "--index", "deals", answer="n\n").stdout
    assert "Remove 3 pending rows for good?" in call("purge", answer="n\n").stdout
    purged = call("purge", "--index", "contacts", answer="y\n")
    assert (purged.exit_code, "2 rows are removed" in purged.stdout) == (0, True)
    assert outbox.counts()["pending"] == 1


def test_purge_of_nothing_asks_nothing(call: Call) -> None:
    assert call("purge").stdout == "nothing is pending\n"


def test_row_that_is_written_while_purge_asks_stays(
    outbox: Outbox, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    outbox.index("contacts", "before", {})
    after: list[int] = []

    def answer(*_: object, **__: object) -> bool:
        after.append(outbox.index("contacts", "while it asks", {}))
        return True

    monkeypatch.setattr("click.confirm", answer)
    assert "1 row is removed" in call("purge").stdout
    assert outbox.state(after[0]) == "pending"


@pytest.mark.parametrize(
    ("command", "says"),
    [
        (("purge", "--yes"), "purged: 2 pending rows removed for good by ada; selection: all"),
        (
            ("purge", "--index", "deals", "--yes"),
            "purged: 1 pending row removed for good by ada; selection: index=deals",
        ),
        (
            ("dead", "discard", "--tenant", "t1", "--index", "contacts", "--yes"),
            "discarded: 1 dead row removed for good by ada; selection: index=contacts tenant=t1",
        ),
        (("dead", "discard", "3", "4", "--yes"), "discarded: 2 dead rows removed for good by ada; selection: ids=3,4"),
        (("dead", "discard", "--all", "--yes"), "discarded: 2 dead rows removed for good by ada; selection: all"),
    ],
)
def test_removal_is_logged_with_who_and_what(
    outbox: Outbox, call: Call, command: tuple[str, ...], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("getpass.getuser", lambda: "ada")
    outbox.index("contacts", "c1", {})
    outbox.index("deals", "d1", {})
    die(outbox, outbox.index("contacts", "c2", {}, tenant_id="t1"))
    die(outbox, outbox.index("contacts", "c3", {}))
    logged = [json.loads(line) for line in call(*command, OUTBOX_LOG_FORMAT="json").stderr.splitlines()]
    assert [(line["level"], line["message"]) for line in logged] == [("WARNING", says)]
    assert [(line["by"], line["selection"]) for line in logged] == [("ada", says.partition("selection: ")[2])]


def test_user_without_a_name_is_a_number(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody() -> str:
        raise KeyError("getpwuid(): uid not found: 4711")

    monkeypatch.setattr("getpass.getuser", nobody)
    monkeypatch.setattr("os.getuid", lambda: 4711)
    assert call("pause", "--reason", "maintenance").exit_code == 0
    assert "by uid 4711: maintenance" in call("status").stdout


# -- surroundings ----------------------------------------------------------------------------------------------------


def process(outbox: Outbox, command: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """A command of its own process; in a shell, for the redirections."""
    options["env"] = os.environ | {"OUTBOX_DATABASE_URL": outbox.url} | options.get("env", {})
    line = f"{shlex.quote(str(Path(sys.executable).with_name('outbox-relay')))} {command}"
    return subprocess.run(["sh", "-c", line], capture_output=True, text=True, timeout=LIMIT_S, check=False, **options)


@pytest.mark.parametrize("command", ["status", "run --drain"])
@pytest.mark.parametrize("closed", ["2>&-", ">&- 2>&-"])
def test_command_works_without_a_standard_error(outbox: Outbox, tmp_path: Path, command: str, closed: str) -> None:
    embedded = {"OUTBOX_DESTINATION": "embedded", "OUTBOX_EMBEDDED_PATH": str(tmp_path / "search.db")}
    assert process(outbox, f"{command} {closed}", env=embedded).returncode == 0


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has a device that is full")
@pytest.mark.parametrize("command", ["status", "dead list", "settings --json"])
def test_output_that_cannot_be_written_is_one_line(outbox: Outbox, command: str) -> None:
    result = process(outbox, f"{command} > /dev/full")
    assert result.stderr == "error: the output cannot be written: No space left on device\n"
    assert result.returncode == 1


def test_working_directory_that_was_removed_is_one_line(outbox: Outbox, tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    result = process(outbox, "status --database-url sqlite:///app.db", cwd=gone, preexec_fn=gone.rmdir)
    assert result.stderr.splitlines()[-1] == "error: the working directory was removed: change to one that exists"
    assert "Traceback" not in result.stderr
    assert result.returncode == 2


@pytest.mark.parametrize(
    "arguments",
    [
        ("dead", "list", "--tenant", "\udcff"),
        ("pause", "--reason", "\udcff"),
        ("audit", "--by", "\udcff"),
        ("tenant", "drop", "a\udcff", "--yes"),
        ("search", "contacts", "\udcff"),
    ],
)
def test_argument_that_is_no_text_is_wrong_usage(call: Call, arguments: tuple[str, ...]) -> None:
    result = call(*arguments)
    assert (result.exit_code, result.stderr.count("\\udcff' is no UTF-8 text")) == (2, 1)


def test_name_of_a_user_that_is_no_text_is_noted_as_its_bytes(call: Call) -> None:
    assert call("pause", "--reason", "import", LOGNAME="ada\udcff").exit_code == 0
    assert r"ada\udcff  pause" in call("audit").stdout
