"""The same words in the API: counted first, then done."""

from __future__ import annotations

from typing import Any

import pytest

from tests.admin.world import World, kill

DAY = 86_400_000


def rows(world: World) -> list[int]:
    """Of one tenant, of another index, and of long ago."""
    found = [
        world.outbox.index("notes", "a", {}, tenant_id="t1"),
        world.outbox.index("contacts", "a", {}),
        world.outbox.index("notes", "b", {}),
    ]
    world.outbox.raw("UPDATE outbox_events SET created_at = created_at - :age WHERE id = :id", age=2 * DAY, id=found[2])
    return found


SELECTIONS: list[tuple[dict[str, Any], set[int]]] = [
    ({"ids": [1, 3]}, {1, 3}),
    ({"document": "a"}, {1, 2}),
    ({"document": "a", "index": "notes"}, {1}),
    ({"tenantId": "t1"}, {1}),
    ({"olderThan": "36h"}, {3}),
    ({"all": True}, {1, 2, 3}),
]


@pytest.mark.parametrize(("selection", "chosen"), SELECTIONS)
@pytest.mark.parametrize("path", ["/purge", "/dead/discard", "/dead/retry"])
def test_rows_are_counted_first_and_then_done(
    embedded: World, path: str, selection: dict[str, Any], chosen: set[int]
) -> None:
    state = "pending" if path == "/purge" else "dead"
    for row in rows(embedded):
        if state == "dead":
            kill(embedded.outbox, row)
    counted = embedded.post(path, {**selection, "dryRun": True})
    assert counted["selected"] == len(chosen)
    assert counted.get("removed", 0) == counted.get("pending", 0) == 0
    assert embedded.outbox.counts()[state] == 3
    done = embedded.post(path, selection)
    assert done["selected"] == done["pending" if path == "/dead/retry" else "removed"] == len(chosen)
    assert {row["id"] for row in embedded.outbox.store().events() if row["state"] == state} == {1, 2, 3} - chosen


def test_purge_says_who_and_what_and_refuses_what_names_nothing(embedded: World) -> None:
    rows(embedded)
    for body in ({}, {"all": False}, {"dryRun": True}, {"errorType": "x"}, {"olderThan": "soon"}, {"document": ""}):
        embedded.post("/purge", body, 422)
    assert "no pending row 99" in embedded.post("/purge", {"ids": [99]}, 404)["detail"]
    assert "there is no tenant" in embedded.post("/purge", {"tenantId": "none"}, 422)["detail"]
    assert embedded.outbox.counts()["pending"] == 3
    embedded.post("/purge", {"document": "a", "index": "notes"})
    assert embedded.logged(
        "WARNING purged: 1 pending row removed for good by admin at testclient; selection: document=a index=notes"
    )
