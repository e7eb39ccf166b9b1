"""What the admin server asks of the tables costs nothing for each finished row, and little for each dead one."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tests.admin.world import API, World, kill
from tests.support.serving import every_route
from tests.support.watching import asked_of_stores

LARGE = "events|documents|failures|stats"
BY_TENANT = ("/events?tenant=t1", "/events?state=dead&tenant=t1", f"{API}/events?tenant=t1")
OF_DEAD = (
    "/events?state=dead",
    "/events?state=dead&index=contacts",
    "/events?state=dead&errorType=poison",
    "/events?state=dead&errorType=poison&index=contacts",
    "/events?state=dead&document=c1",
    "/confirm?do=retry&state=dead",
    "/confirm?do=discard&state=dead&tenant=t1&index=contacts",
    f"{API}/events?state=dead",
)
OTHERS = (
    "/events?state=pending",
    "/events?state=done",
    "/events?index=contacts&document=c1",
    "/events?errorType=poison",
    "/index?index=contacts",
    "/document?index=contacts&id=t1:1",
    f"{API}/index?index=contacts",
)


def asked_by(world: World, path: str, *, is_there: bool = True) -> list[tuple[str, Any]]:
    with asked_of_stores() as asked:
        answer = world.client.get(path, headers={} if path.startswith("/api/") else {"Accept": "text/html"})
    assert answer.status_code == 200 or not is_there, (path, answer.status_code)
    return asked


def plan(world: World, statement: str, parameters: Any) -> list[str]:
    with world.outbox.engine.connect() as connection:
        found = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters or None)
        return [row[3].replace("SCAN TABLE", "SCAN") for row in found]


def walks(statement: str, steps: list[str]) -> list[str]:
    """Steps that go through all of a large table, by itself or by an index that has each of its finished rows."""
    named = re.findall(rf"\b(outbox_(?:{LARGE}))\b(?: AS (\w+))?", statement)
    names = "|".join({name for each in named for name in each if name}) or "none"
    return [
        step
        for step in steps
        if re.match(
            rf"SCAN (?:{names})\b(?!.* USING .*ix_outbox_events_(?:fresh|waiting|held|leases|dead|causes)\b)", step
        )
    ]


@pytest.fixture
def dying(embedded: World) -> World:
    """Rows of two tenants: some are done, some wait, some are dead."""
    outbox = embedded.outbox
    for number in range(12):
        row = outbox.index("contacts", f"c{number}", {"name": "Ada"}, tenant_id=f"t{number % 2}")
        if number < 4:
            kill(outbox, row, "poison")
    outbox.raw("UPDATE outbox_events SET state = 'done', finished_at = 1 WHERE id > 8")
    return embedded


def test_no_page_and_no_answer_walks_through_all_rows(dying: World) -> None:
    routes = [path for method, path in every_route(dying.client) if method == "GET" and "static" not in path]
    for path in (*routes, *BY_TENANT, *OF_DEAD, *OTHERS):
        for statement, parameters in asked_by(dying, path, is_there=path not in routes):
            if statement.startswith(("SELECT", "WITH")):
                steps = plan(dying, statement, parameters)
                assert not walks(statement, steps), (path, statement, steps)


def test_no_dead_row_is_looked_up_for_its_tenant_or_its_error(dying: World) -> None:
    """The index of dead rows by document has neither: each of 200,000 rows would be read for it."""
    for path in (*BY_TENANT, *OF_DEAD, "/", "/indexes"):
        for statement, parameters in asked_by(dying, path):
            if re.search(r"\b(tenant_id|error_type|error_field)\b", statement) and statement.startswith("SELECT"):
                steps = plan(dying, statement, parameters)
                assert not [each for each in steps if re.match(r"SCAN .*ix_outbox_events_dead\b", each)], statement


def test_dead_rows_of_one_tenant_are_found_without_a_look_at_those_of_others(dying: World) -> None:
    """Else each page of a tenant reads twice through all that is dead: 80 ms of 200,000 rows."""
    for path in (
        *BY_TENANT,
        "/confirm?do=discard&state=dead&tenant=t1",
        "/events?state=dead&tenant=t1&errorType=poison",
    ):
        of_tenant = [
            (statement, parameters)
            for statement, parameters in asked_by(dying, path)
            if "tenant_id IN" in statement and "state = 'dead'" in statement
        ]
        assert of_tenant or path.startswith("/api/"), path
        for statement, parameters in of_tenant:
            steps = plan(dying, statement, parameters)
            assert not [each for each in steps if re.match(r"SCAN .*ix_outbox_events_(?:dead|causes)", each)], statement


def test_causes_take_as_many_statements_however_many_indexes_they_are_in(dying: World) -> None:
    asked = []
    for indexes in (1, 20):  # more are dead than before, so they are counted anew
        for index in range(indexes):
            kill(dying.outbox, dying.outbox.index(f"index-{index}", "c1", {}), "poison")
        asked.append(len(asked_by(dying, "/events?state=dead")))
    assert asked[0] == asked[1]
