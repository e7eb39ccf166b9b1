"""Dead rows by what they died of: counted without a gap, each with its remedy, and dealt with as a whole."""

from __future__ import annotations

import re
from html import unescape

import pytest

from outbox.admin.causes import CausesCache
from outbox.destinations.remedies import ANY_OTHER, OF_THE_DESTINATION, OUR_OWN, remedy_of
from outbox.store import causes, figures
from outbox.store.causes import Causes
from outbox.store.models import State, now_ms
from tests.admin.world import World, kill
from tests.support.outbox import Outbox

HOUR = 3_600_000
PARSING = "document_parsing_exception"


def dead(outbox: Outbox, number: int, field: str | None, index: str = "contacts", at: int = 0) -> list[int]:
    rows = outbox.index_many(index, [(f"{field}-{at}-{number}", {}) for number in range(number)])
    for row in rows:
        kill(outbox, row, PARSING if field != "poison" else "poison")
        outbox.raw(
            "UPDATE outbox_events SET error_field = :field, finished_at = :at, tenant_id = 't1' WHERE id = :row",
            field=None if field == "poison" else field, at=at, row=row,
        )  # fmt: skip
    return rows


def of_all(outbox: Outbox, index: str | None = None) -> Causes:
    return causes.causes(outbox.store(), causes.counted(outbox.store()), index)


def test_causes_are_counted_by_type_and_field_over_all_indexes(outbox: Outbox) -> None:
    dead(outbox, 2, "age", at=50), dead(outbox, 3, "age", "deals", at=20)
    (newest,) = dead(outbox, 1, "age", "notes", at=90)
    dead(outbox, 4, "name", at=7), dead(outbox, 1, "poison", at=1)
    dead(outbox, 2, None, at=3)
    outbox.raw("UPDATE outbox_events SET finished_at = NULL WHERE error_field IS NULL AND error_type <> 'poison'")
    outbox.index("contacts", "waits", {})
    found, others = of_all(outbox)
    assert [(each.error_type, each.error_field, each.rows, each.index, each.indexes) for each in found] == [
        (PARSING, "age", 6, "deals", 3),
        (PARSING, "name", 4, "contacts", 1),
        (PARSING, None, 2, "contacts", 1),
        ("poison", None, 1, "contacts", 1),
    ]
    assert [(each.first, each.last) for each in found] == [(20, 90), (7, 7), (None, None), (1, 1)]
    assert (found[0].example["id"], others) == (newest, 0)
    assert [each.rows for each in of_all(outbox, "deals").causes] == [3]


def test_rows_of_rare_causes_are_counted_together(outbox: Outbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(causes, "MOST_CAUSES", 1)
    dead(outbox, 3, "age"), dead(outbox, 2, "name"), dead(outbox, 1, "born")
    found, others = of_all(outbox)
    assert ([each.error_field for each in found], others) == (["age"], 3)


def test_causes_are_counted_again_when_more_rows_are_dead_and_after_ten_seconds(outbox: Outbox) -> None:
    store, cache = outbox.store(), CausesCache()
    (first,) = dead(outbox, 1, "age")
    assert [each.error_field for each in cache.read(store, 1, 1_000)] == ["age"]
    outbox.raw("UPDATE outbox_events SET error_field = 'born' WHERE id = :row", row=first)
    assert [each.error_field for each in cache.read(store, 1, 10_999)] == ["age"]
    assert [each.error_field for each in cache.read(store, 1, 11_000)] == ["born"]
    dead(outbox, 1, "name")
    assert {each.error_field for each in cache.read(store, 2, 11_001)} == {"born", "name"}
    assert causes.by_type(cache.read(store, 2, 11_002)) == [("contacts", PARSING, 2)]


def test_cause_whose_newest_row_was_retried_since_it_was_counted_is_shown_by_another(outbox: Outbox) -> None:
    (older,), (newer,) = dead(outbox, 1, "age", at=10), dead(outbox, 1, "age", at=20)
    counted = causes.counted(outbox.store())
    outbox.raw("UPDATE outbox_events SET state = 'pending', finished_at = NULL WHERE id = :row", row=newer)
    assert [each.example["id"] for each in causes.causes(outbox.store(), counted).causes] == [older]


@pytest.mark.parametrize("walked", [0, 2, 2_000])
def test_dead_rows_are_found_newest_first_however_far_apart_they_are(
    outbox: Outbox, walked: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(figures, "MOST_WALKED", walked)
    monkeypatch.setattr(causes, "MOST_DEAD", 3)
    rows = []
    for field in ("age", "name", "age", "name", "age"):
        rows += dead(outbox, 2, field)
        outbox.index_many("contacts", [("done", {})] * 3)
    store = outbox.store()
    for given, expected in (
        ({}, rows),
        ({"error_type": PARSING, "error_field": "age"}, [*rows[:2], *rows[4:6], *rows[8:]]),
        ({"tenants": ("t1",)}, rows),
        ({"index": "deals"}, []),
        ({"document": "age-0-1", "error_field": "age"}, [rows[1], rows[5], rows[9]]),
    ):
        seen: list[int] = []
        at: int | None = None
        while True:
            page = figures.newest_rows(store, state=State.DEAD, before=at, limit=2, **given)  # type: ignore[arg-type]
            seen += [row["id"] for row in page.rows]
            if (at := page.older) is None:
                break
        assert seen == expected[::-1], given
        assert causes.count(store, **given) == len(expected)  # type: ignore[arg-type]


def test_group_is_retried_after_its_page_and_leaves_all_else_dead(embedded: World) -> None:
    outbox, client = embedded.outbox, embedded.client
    mine, others = dead(outbox, 2, "age"), [*dead(outbox, 1, "name"), *dead(outbox, 1, None)]
    page = client.get("/events?state=dead").text
    assert unescape(page).count(f"→ {remedy_of(PARSING)}") == 3
    links = [unescape(each) for each in re.findall(r'href="(/confirm\?[^"]*)"', page)]
    assert len(links) == 8  # of each cause, and of all of them
    confirm = client.get(links[0]).text
    assert "<h1>Retry 2 rows?</h1>" in confirm
    assert {outbox.state(row) for row in mine} == {"dead"}
    fields = {
        name: unescape(value) for name, value in re.findall(r'type="hidden" name="(\w+)" value="([^"]*)"', confirm)
    }
    late = dead(outbox, 1, "age", at=now_ms() + HOUR)
    client.post("/dead/retry", data=fields)
    assert {outbox.state(row) for row in mine} == {"pending"}
    assert {outbox.state(row) for row in [*others, *late]} == {"dead"}


def test_rows_whose_error_names_no_field_are_chosen_by_that(embedded: World) -> None:
    (named,), (without,) = dead(embedded.outbox, 1, "age"), dead(embedded.outbox, 1, None)
    seen = embedded.get("/events", state="dead", errorField="(none)")["items"]
    assert [(each["id"], each["errorField"]) for each in seen] == [(without, None)]
    assert embedded.post("/dead/discard", {"errorField": "(none)", "errorType": PARSING})["removed"] == 1
    assert embedded.outbox.state(named) == "dead"


@pytest.mark.parametrize(
    "path", ["/confirm?do=drop&state=dead", "/confirm?do=retry&state=done", "/confirm?do=purge&q=state:dead"]
)
def test_question_that_makes_no_sense_is_refused(embedded: World, path: str) -> None:
    assert embedded.client.get(path).status_code == 422


def test_each_remedy_says_what_to_do_and_stands_for_one_type_alone() -> None:
    named = [name for each in (*OUR_OWN, *OF_THE_DESTINATION) for name in each.error_types]
    assert len(named) == len(set(named))
    assert remedy_of("some_exception") == remedy_of(None) == ANY_OTHER
    for each in (*OUR_OWN, *OF_THE_DESTINATION):
        assert "dead" not in each.becomes or re.search(r"discard|retry", each.text), each
