"""Log lines: a sentence for a person, fields for a machine, and no way for foreign text to forge either."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from loguru import logger

from outbox import logs
from outbox.destinations.base import Operation, Outcome, OutcomeKind
from outbox.destinations.embedded.destination import EmbeddedDestination
from outbox.store.models import Event, now_ms
from tests.support.outbox import Outbox, settings


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    yield io.StringIO()
    logger.remove()


def entries(log: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.getvalue().splitlines()]


def test_rows_are_words_in_the_text_and_a_number_in_the_field(log: io.StringIO) -> None:
    logs.set_up(settings(log_format="json"), log)
    for number in (1, 2_000):
        logger.info("{rows:waits/wait} behind {path}", rows=logs.Rows(number), path=Path("app.db"))
    assert [(each["message"], each["rows"], each["path"]) for each in entries(log)] == [
        ("1 row waits behind app.db", 1, "app.db"),
        ("2,000 rows wait behind app.db", 2_000, "app.db"),
    ]


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_braces_and_markup_of_foreign_text_stay_as_they_are(log: io.StringIO, log_format: str) -> None:
    logs.set_up(settings(log_format=log_format), log)
    reason = logs.safe("{index} <red>{0}</red>\n21:14 INFO forged")
    logger.warning("index {index} takes no rows ({reason})", index="contacts", reason=reason)
    (line,) = log.getvalue().splitlines()
    said = json.loads(line)["message"] if log_format == "json" else line
    assert said.endswith(r"index contacts takes no rows ({index} <red>{0}</red>\n21:14 INFO forged)")


def test_line_of_json_is_written_whatever_is_in_it(log: io.StringIO) -> None:
    logs.set_up(settings(log_format="json"), log)
    logger.warning("{name} has no effect", name="OUTBOX_\udcff", number=2**70)
    line = json.loads(log.getvalue())
    assert (line["message"], line["number"]) == ("OUTBOX_? has no effect", 2**70)


@pytest.mark.parametrize("forging", ["\n", "\r", "\x1b[2K", "\x85", "\x9b2K", "\u2028", "\u202e"])
def test_index_name_that_another_program_wrote_forges_no_line(
    outbox: Outbox, destination: Search, log: io.StringIO, forging: str
) -> None:
    logs.set_up(settings(), log)
    outbox.put_raw(f"a{forging}21:14 forged", "c1", "{}")
    outbox.put_raw(f"a{forging}21:14 forged", "c2", "{}", action="refresh")
    outbox.put_raw(f"a{forging}forged", "c3", "{}", action="refresh")
    outbox.relay(destination).run_once(now_ms())
    lines = log.getvalue().split("\n")[:-1]
    assert sum("forged" in line for line in lines) >= 2
    assert [line for line in lines if not line.isprintable() or not re.match(r"\d{4}-\d\d-\d\d ", line)] == []


@pytest.mark.parametrize("time", ["first", "once more"])
def test_logs_that_a_test_has_chosen_are_not_those_of_the_next_one(said: list[str], time: str) -> None:
    logs.operations([(Event(1, "index", "contacts", time, None, None, 0, 1, now_ms()), None)])
    assert [line.partition("[ES] ")[2] for line in said] == [f"INDEX contacts/{time}"]
    logs.set_up(settings(log_format="json", log_operations=False), io.StringIO())


class Search(EmbeddedDestination):
    """A destination that may be away."""

    away = False

    def apply(self, operations: Sequence[Operation]) -> list[Outcome]:
        if self.away:
            return [Outcome(OutcomeKind.UNAVAILABLE, "refused", "connection\nrefused")] * len(operations)
        return super().apply(operations)


@pytest.fixture
def destination(tmp_path: Path) -> Iterator[Search]:
    made = Search(tmp_path / "search.db")
    yield made
    made.close()


def test_pause_of_an_index_and_its_end_are_sentences_with_fields(
    outbox: Outbox, destination: Search, log: io.StringIO
) -> None:
    logs.set_up(settings(log_format="json"), log)
    relay, now = outbox.relay(destination), now_ms()
    outbox.put_raw("contacts", "c1", "{}", action="refresh")  # of an entity that this relay does not know
    relay.run_once(now)
    relay.run_once(now)
    outbox.raw("DELETE FROM outbox_events")
    outbox.index("accounts", "a1", {})
    relay.run_once(now + 60_000)
    paused, resumed = (each for each in entries(log) if each["message"].startswith("index "))
    reason = "no_registry: its entities are not known here: set OUTBOX_ENTITIES for this relay"
    assert paused["message"] == (
        f"index contacts takes no rows ({reason}), pausing it; other indexes go on; "
        "'outbox-relay check' says what to do"
    )
    assert (paused["level"], paused["index"], paused["reason"]) == ("WARNING", "contacts", reason)
    assert (resumed["message"], resumed["index"]) == ("index contacts resumed: no rows waiting", "contacts")


def test_outage_says_how_many_rows_wait_and_how_long_it_lasted(
    outbox: Outbox, destination: Search, log: io.StringIO
) -> None:
    logs.set_up(settings(log_format="json"), log)
    relay, now = outbox.relay(destination), now_ms()
    outbox.index_many("contacts", [("c1", {}), ("c2", {})])
    destination.away = True
    relay.run_once(now)
    destination.away = False
    relay.run_once(now + 158_000)
    began, ended = (each for each in entries(log) if each["message"].startswith("destination "))
    assert (began["level"], began["message"]) == (
        "WARNING", r"destination unreachable (connection\nrefused), pausing; 2 rows wait, no attempt is spent"
    )  # fmt: skip
    assert (began["reason"], began["rows"]) == (r"connection\nrefused", 2)
    assert ended["message"] == "destination answers again after 2 min 38 s, resuming with 2 rows"
    assert (ended["level"], ended["open_for_ms"], ended["rows"]) == ("INFO", 158_000, 2)
